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

from serve_app.core.diffusion.sample import of_model
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeviceFull, ModelNotFound, ModelUnavailable
from serve_app.core.scheduling.memory_plan import Fit
from serve_app.core.scheduling.step_scheduler import BatchSize
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.stage_model import Packed, StageModel

logger = logging.getLogger("aura.runtime")

# Is told how many models are to come beside this one, and how it was fitted when it was here last.
Maker = Callable[[int, Fit | None], StageModel]
_REFINER = "the refiner"  # which has no name: it is one for all
_FAILURE = 60.0  # seconds for which a model that could not be loaded is not tried again


class Shelf:
    """At most `room` models in memory, and with those on the host `parked` more.

    The first of the `makers` is loaded at once, and so are those of `always`, which never go for
    good: of the others the one parked longest does. Then the first one is in memory. Raises what a
    maker raises.
    """

    def __init__(
        self,
        makers: Mapping[str, Maker],
        *,
        room: int = 1,
        parked: int = 0,
        always: Collection[str] = (),
        lora_room: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._makers = dict(makers)
        self._clock = clock
        self._failed: dict[tuple[str, ...], tuple[float, str]] = {}  # when, and the sentence
        self.default = next(iter(self._makers))  # for samples that name no model
        self.room = min(room, len(self._makers))
        self.lora_room = lora_room  # of each model
        first = self._makers[self.default](self.room - 1, None)
        self.device = first.device
        self.profile = first.profile  # of the default one, as it was when it came first
        self._here = {self.default: first}
        self._fits = {self.default: first.fit}  # of all that ever were here
        self._parked: dict[str, StageModel] = {}  # the one that left longest ago first
        self._parks = parked > 0
        self._kept = self.room + parked  # models in all
        self._always = always
        for name in (*always, self.default):
            if name not in self._here:
                full = len(self._here) == self.room
                self._make_way(name, list(self._here)[:full])
                self._come(name)

    @classmethod
    def of(cls, model: StageModel) -> "Shelf":
        """A shelf for one model that is loaded already."""
        return cls({"": lambda to_come, before: model})

    @property
    def here(self) -> dict[str, BatchSize]:
        """Those in memory, by name, and how many samples of each step together."""
        return {name: model.batch for name, model in self._here.items()}

    @property
    def loras(self) -> dict[str, tuple[str, ...]]:
        """The LoRAs attached to each of those in memory."""
        return {name: model.loras for name, model in self._here.items()}

    @property
    def fits(self) -> dict[str, Fit]:
        """Those in memory and then those parked, by name, and what was given up for each."""
        return {name: one.fit for name, one in (*self._here.items(), *self._parked.items())}

    def __getitem__(self, name: str) -> StageModel:
        """A model that is in memory. Raises `KeyError`."""
        return self._here[name]

    def admit(self, sample: Packed) -> Packed:
        """The sample, bound to the model that will step it.

        Raises `ModelNotFound`, or `ModelUnavailable` where loading it or one of its LoRAs has just
        failed: trying again would put another out, as often as anybody asks.
        """
        if sample.stage is Stage.BASE and not sample.model:
            sample = of_model(sample, self.default)
        if sample.model not in self._makers:
            there = ", ".join(name for name in self._makers if name)
            raise ModelNotFound(f"there is no such model on this replica; there is {there}")
        for what in ((sample.model,), *((sample.model, lora.name) for lora in sample.loras)):
            failed = self._failed.get(what)
            if failed and self._clock() - failed[0] < _FAILURE:
                raise ModelUnavailable(failed[1])
        return sample

    def load(self, name: str, drop: Sequence[str]) -> None:
        """The model is in memory, and those to `drop` are not: they are parked, or nothing of them
        is anywhere.

        What is dropped has left the device before the new one is tried, which counts what is there.
        Raises `ModelUnavailable`; of the failed one nothing stays but what was parked.
        """
        self._make_way(name, drop)
        try:
            self._come(name)
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold what was made of it
            self.device.free()
            called = f"the model {name}" if name else _REFINER
            raise self._remembered((name,), called, error) from error

    def _make_way(self, coming: str, drop: Sequence[str]) -> None:
        for gone in drop:
            logger.info("%s makes room for %s", gone or _REFINER, coming or _REFINER)
            model = self._here.pop(gone)
            if self._parks:
                model.park()
                self._parked[gone] = model
        over = len({coming, *self._here, *self._parked}) - self._kept
        may_go = [one for one in self._parked if one != coming and one not in self._always]
        for one in may_go[: max(0, over)]:
            del self._parked[one]

    def _come(self, name: str) -> None:
        if name in self._parked:
            self._parked[name].unpark()
            self._here[name] = self._parked.pop(name)
            return
        self.device.free()  # what a ring of references, or torch, would keep of one that left
        to_come = self.room - len(self._here) - 1
        self._here[name] = self._makers[name](to_come, self._fits.get(name))
        self._fits[name] = self._here[name].fit

    def attach(self, model: str, lora: str, drop: Sequence[str]) -> None:
        """Samples may wear the LoRA on a model in memory; nothing of those to `drop` is there.

        Raises `ModelUnavailable`; nothing of the failed one stays.
        """
        try:
            self._here[model].attach(lora, drop)
        except Exception as error:
            clear_frames(error.__traceback__)
            self.device.free()
            raise self._remembered((model, lora), f"the LoRA {lora}", error) from error

    def _remembered(self, what: tuple[str, ...], called: str, error: Exception) -> ModelUnavailable:
        """The error to be raised; its sentence alone is kept, for an error that is raised again and
        again holds on to whatever saw it."""
        sentence = _sentence(called, error)
        self._failed[what] = self._clock(), sentence
        return ModelUnavailable(sentence)

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        for model in self._here.values():
            model.forget(id)


def _sentence(what: str, error: Exception) -> str:
    if isinstance(error, DeviceFull) or is_out_of_memory(error):
        return (
            f"the device has no room for {what}: the service's operator can lower "
            "MODELS_IN_MEMORY or LORAS_IN_MEMORY, or use MODEL_PRECISION=fp16"
        )
    return f"{what} can't be loaded; the service's log says why"
