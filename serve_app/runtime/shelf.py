"""`Shelf`: the models of one replica by name, of which a few are in memory at a time.

Knows no samples' insides and decides nothing: which model is to come, and which must go for it, the
scheduler says. Only the engine's thread loads; what is asked of it else never changes. Each model
is fitted to the device as it is loaded, so each has a batch and a numeric profile of its own.
"""

import logging
import time
from collections.abc import Callable, Mapping
from traceback import clear_frames

from serve_app.core.errors import DeviceFull, ModelNotFound, ModelUnavailable
from serve_app.core.fitting import Fit
from serve_app.core.sample import of_model
from serve_app.core.scheduler import BatchSize
from serve_app.core.spec import Stage
from serve_app.runtime.device import is_out_of_memory
from serve_app.runtime.model import Packed, StageModel

logger = logging.getLogger("aura.runtime")

# Is told how many models are to come beside this one, and how it was fitted when it was here last.
Maker = Callable[[int, Fit | None], StageModel]
_FAILURE = 60.0  # seconds for which a model that could not be loaded is not tried again


class Shelf:
    """At most `room` models; the first of the `makers` is loaded at once."""

    def __init__(
        self,
        makers: Mapping[str, Maker],
        *,
        room: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._makers = dict(makers)
        self._clock = clock
        self._failed: dict[str, tuple[float, ModelUnavailable]] = {}  # when, and how
        self.default = next(iter(self._makers))  # for samples that name no model
        self.room = min(room, len(self._makers))
        first = self._makers[self.default](self.room - 1, None)
        self.device = first.device
        self.profile = first.profile  # of the default one, as it was when it came first
        self._here = {self.default: first}
        self._fits = {self.default: first.fit}  # of all that ever were here

    @classmethod
    def of(cls, model: StageModel) -> "Shelf":
        """A shelf for one model that is loaded already."""
        return cls({"": lambda to_come, before: model})

    @property
    def here(self) -> dict[str, BatchSize]:
        """Those in memory, by name, and how many samples of each step together."""
        return {name: model.batch for name, model in self._here.items()}

    @property
    def fits(self) -> dict[str, Fit]:
        """Those in memory, by name, and what was given up for each."""
        return {name: model.fit for name, model in self._here.items()}

    def __getitem__(self, name: str) -> StageModel:
        """A model that is in memory. Raises `KeyError`."""
        return self._here[name]

    def admit(self, sample: Packed) -> Packed:
        """The sample, bound to the model that will step it.

        Raises `ModelNotFound`, or `ModelUnavailable` where loading it has just failed: trying again
        would put another model out, as often as anybody asks.
        """
        if sample.stage is Stage.BASE and not sample.model:
            sample = of_model(sample, self.default)
        if sample.model not in self._makers:
            there = ", ".join(self._makers)
            raise ModelNotFound(f"there is no such model on this replica; there is {there}")
        failed = self._failed.get(sample.model)
        if failed and self._clock() - failed[0] < _FAILURE:
            raise failed[1]
        return sample

    def load(self, name: str, drop: str | None) -> None:
        """The model is in memory, and the one to `drop` is not, nor is anything of it.

        What is dropped has left the device before the new one is tried, which counts what is there.
        Raises `ModelUnavailable`; nothing of the failed one stays.
        """
        if drop is not None:
            logger.info("%s makes room for %s", drop, name)
            del self._here[drop]
        self.device.free()  # what a ring of references, or torch, would keep of it
        try:
            to_come = self.room - len(self._here) - 1
            self._here[name] = self._makers[name](to_come, self._fits.get(name))
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold what was made of it
            self.device.free()
            unavailable = _unavailable(name, error)
            self._failed[name] = self._clock(), unavailable
            raise unavailable from error
        self._fits[name] = self._here[name].fit

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        for model in self._here.values():
            model.forget(id)


def _unavailable(name: str, error: Exception) -> ModelUnavailable:
    if isinstance(error, DeviceFull) or is_out_of_memory(error):
        return ModelUnavailable(
            f"the device has no room for the model {name}: the service's operator can lower "
            "MODELS_IN_MEMORY or use MODEL_PRECISION=fp16"
        )
    return ModelUnavailable(f"the model {name} can't be loaded; the service's log says why")
