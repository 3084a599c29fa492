"""`Shelf`: the models of one replica by name, of which a few are in memory at a time.

Knows no samples' insides and decides nothing: which model is to come, and which must go for it, the
scheduler says. Only the engine's thread loads; what is asked of it else never changes.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from serve_app.core.errors import ModelNotFound, ModelUnavailable, ProfileChanged
from serve_app.core.profile import NumericProfile
from serve_app.core.sample import of_model
from serve_app.core.spec import Stage
from serve_app.runtime.model import Packed, StageModel

logger = logging.getLogger("aura.runtime")

Maker = Callable[[], StageModel]


class Shelf:
    """At most `room` models; the first of the `makers` is loaded at once."""

    def __init__(self, makers: Mapping[str, Maker], *, room: int = 1) -> None:
        self._makers = dict(makers)
        self.default = next(iter(self._makers))  # for samples that name no model
        self.room = room
        first = self._makers[self.default]()
        self.device = first.device
        self.profile = first.profile
        self._here = {self.default: first}

    @classmethod
    def of(cls, model: StageModel) -> "Shelf":
        """A shelf for one model that is loaded already."""
        return cls({"": lambda: model})

    @property
    def here(self) -> tuple[str, ...]:
        """The names of those in memory."""
        return tuple(self._here)

    def __getitem__(self, name: str) -> StageModel:
        """A model that is in memory. Raises `KeyError`."""
        return self._here[name]

    def admit(self, sample: Packed) -> Packed:
        """The sample, bound to the model that will step it.

        Raises `ModelNotFound`, or `ProfileChanged` when other numbers, or another model, began it.
        """
        if sample.stage is Stage.BASE and not sample.model:
            sample = of_model(sample, self.default)
        if sample.model not in self._makers:
            there = ", ".join(self._makers)
            raise ModelNotFound(f"there is no such model on this replica; there is {there}")
        mine = self.profile_of(sample.model).name
        if sample.profile is not None and sample.profile != mine:
            raise ProfileChanged(f"made under {sample.profile}, this replica runs {mine}")
        return sample

    def profile_of(self, name: str) -> NumericProfile:
        """The numeric profile of a known model, loaded or not: all run alike on one device."""
        return self.profile if name == self.default else replace(self.profile, model=name)

    def load(self, name: str, drop: str | None) -> None:
        """The model is in memory, and the one to `drop` is not, nor is anything of it.

        Raises `ModelUnavailable`; nothing of the failed one stays.
        """
        if drop is not None:
            logger.info("%s makes room for %s", drop, name)
            del self._here[drop]
            self._sweep()
        try:
            self._here[name] = self._makers[name]()
        except Exception as error:
            raise _unavailable(name, error) from error

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        for model in self._here.values():
            model.forget(id)

    def _sweep(self) -> None:
        """Memory that nothing refers to any more is free: modules refer to each other in rings."""
        gc.collect()
        if self.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()


def _unavailable(name: str, error: Exception) -> ModelUnavailable:
    if isinstance(error, torch.OutOfMemoryError):
        return ModelUnavailable(
            f"the device has no room for the model {name}: the service's operator can lower "
            "MODELS_IN_MEMORY or use MODEL_PRECISION=fp16"
        )
    return ModelUnavailable(f"the model {name} can't be loaded; the service's log says why")
