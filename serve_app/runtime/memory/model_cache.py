"""`Shelf`: the models of one replica by name, of which a few are in memory at a time.

Knows no samples' insides and decides nothing: which model is to come, and which must go for it, the
scheduler says. Only the engine's thread loads; what is asked of it else never changes. Each model
is fitted to the device as it is loaded, so each has a batch and a numeric profile of its own. One
that goes may be parked on the host: it comes back as it was, and nothing is tried anew.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from traceback import clear_frames

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import with_model
from serve_app.core.errors import DeviceFull, ModelNotFound, ModelUnavailable
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.stage_model import HostSample, StageModel

logger = logging.getLogger("aura.runtime")

# Is told how many models are to come beside this one, and how it was fitted when it was here last.
Loader = Callable[[int, MemoryPlan | None], StageModel]
_RETRY_AFTER = 60.0  # seconds for which a model that could not be loaded is not tried again


class ModelCache:
    """At most `room` models in memory, and with those on the host `parked` more.

    The first of the `makers` is loaded at once, and so are those of `always`, which never go for
    good: of the others the one parked longest does. Then the first one is in memory. Raises what a
    maker raises.
    """

    def __init__(
        self,
        loaders: Mapping[ModelKey, Loader],
        *,
        capacity: int = 1,
        offload_capacity: int = 0,
        pinned: Collection[ModelKey] = (),
        lora_capacity: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaders = dict(loaders)
        self._clock = clock
        # When loading a model, or attaching a LoRA to it, failed, and the sentence.
        self._failed: dict[ModelKey | tuple[ModelKey, str], tuple[float, str]] = {}
        self.default = next(iter(self._loaders))
        self.capacity = min(capacity, len(self._loaders))
        self.lora_capacity = lora_capacity  # of each model
        first = self._loaders[self.default](self.capacity - 1, None)
        self.device = first.device
        self.profile = first.profile  # of the default one, as it was when it came first
        self._resident = {self.default: first}
        self._plans = {self.default: first.memory_plan}  # of all that ever were here
        self._offloaded: dict[ModelKey, StageModel] = {}  # the one that left longest ago first
        self._offloads = offload_capacity > 0
        self._total_capacity = self.capacity + offload_capacity  # models in all
        self._pinned = pinned
        for name in (*pinned, self.default):
            if name not in self._resident:
                full = len(self._resident) == self.capacity
                self._evict(name, list(self._resident)[:full])
                self._bring_in(name)

    @classmethod
    def of(cls, model: StageModel) -> "ModelCache":
        """A shelf for one model that is loaded already."""
        return cls({ModelKey(model.profile.stage, model.profile.model): lambda *_: model})

    @property
    def batch_sizes(self) -> dict[ModelKey, BatchSize]:
        """Those in memory, by name, and how many samples of each step together."""
        return {name: model.batch_size for name, model in self._resident.items()}

    @property
    def attached_loras(self) -> dict[ModelKey, tuple[str, ...]]:
        """The LoRAs attached to each of those in memory."""
        return {name: model.attached_loras for name, model in self._resident.items()}

    @property
    def memory_plans(self) -> dict[ModelKey, MemoryPlan]:
        """Those in memory and then those parked, by name, and what was given up for each."""
        return {
            name: one.memory_plan
            for name, one in (*self._resident.items(), *self._offloaded.items())
        }

    def __getitem__(self, name: ModelKey) -> StageModel:
        """A model that is in memory. Raises `KeyError`."""
        return self._resident[name]

    def admit(self, sample: HostSample) -> HostSample:
        """The sample, bound to the model that will step it.

        Raises `ModelNotFound`, or `ModelUnavailable` where loading it or one of its LoRAs has just
        failed: trying again would put another out, as often as anybody asks.
        """
        if sample.model_key.name is None:
            default = next((key for key in self._loaders if key.stage is sample.stage), None)
            sample = sample if default is None else with_model(sample, default)
        model = sample.model_key
        if model not in self._loaders:
            available = ", ".join(map(str, self._loaders))
            raise ModelNotFound(f"there is no such model on this replica; there is {available}")
        needs: list[ModelKey | tuple[ModelKey, str]] = [model]
        needs += [(model, lora.name) for lora in sample.active_loras]
        for what in needs:
            failed = self._failed.get(what)
            if failed and self._clock() - failed[0] < _RETRY_AFTER:
                raise ModelUnavailable(failed[1])
        return sample

    def load(self, name: ModelKey, evict: Sequence[ModelKey]) -> None:
        """The model is in memory, and those to `drop` are not: they are parked, or nothing of them
        is anywhere.

        What is dropped has left the device before the new one is tried, which counts what is there.
        Raises `ModelUnavailable`; of the failed one nothing stays but what was parked.
        """
        self._evict(name, evict)
        try:
            self._bring_in(name)
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold what was made of it
            self.device.empty_cache()
            raise self._record_failure(name, f"the model {name}", error) from error

    def _evict(self, coming: ModelKey, evict: Sequence[ModelKey]) -> None:
        for gone in evict:
            logger.info("%s makes room for %s", gone, coming)
            model = self._resident.pop(gone)
            if self._offloads:
                model.offload()
                self._offloaded[gone] = model
        over = len({coming, *self._resident, *self._offloaded}) - self._total_capacity
        may_go = [one for one in self._offloaded if one != coming and one not in self._pinned]
        for one in may_go[: max(0, over)]:
            del self._offloaded[one]

    def _bring_in(self, name: ModelKey) -> None:
        if name in self._offloaded:
            self._offloaded[name].restore()
            self._resident[name] = self._offloaded.pop(name)
            return
        self.device.empty_cache()  # reference cycles and torch keep what has left
        to_come = self.capacity - len(self._resident) - 1
        self._resident[name] = self._loaders[name](to_come, self._plans.get(name))
        self._plans[name] = self._resident[name].memory_plan

    def attach(self, model: ModelKey, lora: str, evict: Sequence[str]) -> None:
        """Samples may wear the LoRA on a model in memory; nothing of those to `drop` is there.

        Raises `ModelUnavailable`; nothing of the failed one stays.
        """
        try:
            self._resident[model].attach(lora, evict)
        except Exception as error:
            clear_frames(error.__traceback__)
            self.device.empty_cache()
            raise self._record_failure((model, lora), f"the LoRA {lora}", error) from error

    def _record_failure(
        self, what: ModelKey | tuple[ModelKey, str], called: str, error: Exception
    ) -> ModelUnavailable:
        """The error to be raised; its sentence alone is kept, for an error that is raised again and
        again holds on to whatever saw it."""
        sentence = _sentence(called, error)
        self._failed[what] = self._clock(), sentence
        return ModelUnavailable(sentence)

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        for model in self._resident.values():
            model.forget(id)


def _sentence(what: str, error: Exception) -> str:
    if isinstance(error, DeviceFull) or is_out_of_memory(error):
        return (
            f"the device has no room for {what}: the service's operator can lower "
            "MAX_LOADED_MODELS or MAX_LOADED_LORAS, or use MODEL_PRECISION=fp16"
        )
    return f"{what} can't be loaded; the service's log says why"
