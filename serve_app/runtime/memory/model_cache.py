"""`ModelCache`: the models of one replica, of which a few are in memory at a time.

The scheduler says what to load and what to evict for it. The cache decides what is offloaded to the
host, and which failed loads are tried again. Only the engine's thread loads. Each model is fitted
to the device as it is loaded, so each has a batch size and a numeric profile of its own. A model
comes back from the host unchanged, and its memory plan is not searched again.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from traceback import clear_frames

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import with_model
from serve_app.core.errors import DeviceFull, ModelUnavailable, model_not_found
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.core.service.warm_ups import OnWarmUp
from serve_app.runtime.live_sample import DeviceSample, HostSample
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.stage_model import StageModel

logger = logging.getLogger("aura.runtime")

# Loads a model. Its arguments: how many models will be loaded beside it, and its last memory plan.
Loader = Callable[[int, MemoryPlan | None], StageModel]
_Loaded = ModelKey | tuple[ModelKey, ExtensionKey]  # a model, or an extension attached to it
_RETRY_AFTER = 60.0  # seconds before something that failed to load is tried again


class ModelCache:
    """At most `capacity` models in memory, and with the offloaded ones `offload_capacity` more.

    The first of the `loaders` is loaded at once and is the one in memory afterwards. The `pinned`
    ones are loaded too and never go back to disk; of the others, the one offloaded longest ago
    does. Raises what a loader raises.
    """

    def __init__(
        self,
        loaders: Mapping[ModelKey, Loader],
        *,
        capacity: int = 1,
        offload_capacity: int = 0,
        pinned: Collection[ModelKey] = (),
        extension_capacity: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaders = dict(loaders)
        self._clock = clock
        self._failures: dict[_Loaded, tuple[float, ModelUnavailable]] = {}  # and their times
        self.default = next(iter(self._loaders))
        self.capacity = min(capacity, len(self._loaders))
        self.extension_capacity = extension_capacity  # of each model
        first = self._loaders[self.default](self.capacity - 1, None)
        self.device = first.device
        self.profile = first.profile  # of the default model when it was first loaded
        self._resident = {self.default: first}
        self._plans = {self.default: first.memory_plan}  # of every model loaded so far
        self._offloaded: dict[ModelKey, StageModel] = {}  # the one offloaded longest ago first
        self._offloads = offload_capacity > 0
        self._total_capacity = self.capacity + offload_capacity
        self._pinned = pinned
        for key in (*pinned, self.default):
            if key not in self._resident:
                is_full = len(self._resident) == self.capacity
                self._evict(key, list(self._resident)[:is_full])
                self._bring_in(key)

    def warm_up(self, on_progress: OnWarmUp) -> None:
        """Compile the models in memory, if they are compiled. Others are compiled as they step."""
        for model in self._resident.values():
            model.warm_up(on_progress)

    @classmethod
    def of(cls, model: StageModel) -> "ModelCache":
        """Return a cache of one model that is already loaded."""
        return cls({ModelKey(model.profile.stage, model.profile.model): lambda *_: model})

    @property
    def batch_sizes(self) -> dict[ModelKey, BatchSize]:
        """The models in memory, and the batch size of each."""
        return {key: model.batch_size for key, model in self._resident.items()}

    @property
    def attached_extensions(self) -> dict[ModelKey, tuple[ExtensionKey, ...]]:
        """The models in memory, and the extensions attached to each."""
        return {key: model.attached_extensions for key, model in self._resident.items()}

    @property
    def memory_plans(self) -> dict[ModelKey, MemoryPlan]:
        """The models in memory, then the offloaded ones, and the memory plan of each."""
        models = (*self._resident.items(), *self._offloaded.items())
        return {key: model.memory_plan for key, model in models}

    def __getitem__(self, key: ModelKey) -> StageModel:
        """Return a model that is in memory. Raises `KeyError`."""
        return self._resident[key]

    def admit(self, sample: HostSample) -> HostSample:
        """Return the sample, bound to the model that steps it: the stage's first if it names none.

        Raises `ModelNotFound`, or `ModelUnavailable` where that model or one of the extensions
        failed to load lately: every other try would evict another model.
        """
        if sample.model_key.name is None:
            default = next((key for key in self._loaders if key.stage is sample.stage), None)
            sample = sample if default is None else with_model(sample, default)
        key = sample.model_key
        if key not in self._loaders:
            raise model_not_found(f"the model of the {key.stage} stage", map(str, self._loaders))
        needs: list[_Loaded] = [key, *((key, ref.key) for ref in sample.active_extensions)]
        for need in needs:
            failure = self._failures.get(need)
            if failure and self._clock() - failure[0] < _RETRY_AFTER:
                raise copy(failure[1])
        return sample

    def failed_self_test(self, key: ModelKey) -> str:
        """Return why a model no longer makes the picture of its self-test; "" if it does.

        One that is not in memory is not tested, but others are. Nothing passes if there are none.
        """
        models = [self._resident[key]] if key in self._resident else self._resident.values()
        failures = [model.failed_self_test() for model in models] or ["no model is in memory"]
        return next(filter(None, failures), "")

    def load(self, key: ModelKey, evict: Sequence[ModelKey]) -> None:
        """Load a model, after `evict` has left the device: offloaded to the host, or dropped.

        Raises `ModelUnavailable`. Nothing stays of a model that failed, except an offloaded one.
        """
        self._evict(key, evict)
        try:
            self._bring_in(key)
        except Exception as error:
            clear_frames(error.__traceback__)  # they keep parts of the model alive
            self.device.empty_cache()
            raise self._record_failure(key, f"the model {key}", error) from error

    def attach(self, model: ModelKey, key: ExtensionKey, evict: Sequence[ExtensionKey]) -> None:
        """Attach an extension to a model in memory, after `evict` has been detached.

        Raises `ModelUnavailable`. Nothing stays of an extension that failed.
        """
        try:
            self._resident[model].attach(key, evict)
        except Exception as error:
            clear_frames(error.__traceback__)
            self.device.empty_cache()
            raise self._record_failure((model, key), f"the {key}", error) from error

    def forget_steps(self, samples: Sequence[DeviceSample]) -> None:
        """Drop what a step of these samples, of one model, may have left behind unmade."""
        self._resident[samples[0].model_key].forget_steps(samples)

    def forget(self, id: str) -> None:
        """Drop what the models keep for a sample."""
        for model in self._resident.values():
            model.forget(id)

    def _evict(self, coming: ModelKey, evict: Sequence[ModelKey]) -> None:
        for key in evict:
            logger.info("%s leaves memory for %s", key, coming)
            model = self._resident.pop(key)
            if self._offloads:
                model.offload()
                self._offloaded[key] = model
        excess = len({coming, *self._resident, *self._offloaded}) - self._total_capacity
        droppable = [k for k in self._offloaded if k != coming and k not in self._pinned]
        for key in droppable[: max(0, excess)]:
            del self._offloaded[key]

    def _bring_in(self, key: ModelKey) -> None:
        if key in self._offloaded:
            self._offloaded[key].restore()
            self._resident[key] = self._offloaded.pop(key)
            return
        self.device.empty_cache()  # reference cycles and torch keep what has left
        reserve_for = self.capacity - len(self._resident) - 1
        self._resident[key] = self._loaders[key](reserve_for, self._plans.get(key))
        self._plans[key] = self._resident[key].memory_plan

    def _record_failure(self, key: _Loaded, name: str, error: Exception) -> ModelUnavailable:
        """Return the error to raise; the one kept is never raised, so it refers to no traceback."""
        failure = _unavailable(name, error)
        self._failures[key] = self._clock(), failure
        return copy(failure)


def _unavailable(name: str, error: Exception) -> ModelUnavailable:
    if isinstance(error, DeviceFull) or is_out_of_memory(error):
        return ModelUnavailable(
            f"the device has no room for {name}",
            remedy="The service's operator can lower MAX_LOADED_MODELS or MAX_LOADED_LORAS, or "
            "use MODEL_PRECISION=fp16",
        )
    return ModelUnavailable("can't be loaded", subject=name, remedy="The service's log says why")
