"""`OwedWork`: what accepted images will take, by stage and caller, kept up to date image by image.

Asking costs nothing per image but those of one caller: hundreds may wait. No clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class OwedImage:
    """What one image will take: GPU-seconds in full batches, by stage that it is not done with."""

    caller: Caller
    due: float  # seconds: when it would be done, had it stepped in full batches at once
    seconds: Mapping[Stage, float]


class OwedWork:
    """The images that are owed, by id. Their owner is the only writer."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._images: dict[Caller, dict[str, OwedImage]] = {}
        self._callers: dict[str, Caller] = {}  # by image
        self._owed: dict[Stage, dict[Caller, float]] = {stage: {} for stage in stages}
        self._counts = dict.fromkeys(self._owed, 0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that are counted."""
        return tuple(self._owed)

    def __len__(self) -> int:
        return len(self._callers)

    def put(self, id: str, image: OwedImage) -> None:
        """Count an image, in place of what was known of it before."""
        self.remove(id)
        self._callers[id] = image.caller
        self._images.setdefault(image.caller, {})[id] = image
        self._add(image, 1)

    def remove(self, id: str) -> None:
        """Forget an image, if it is known."""
        caller = self._callers.pop(id, None)
        if caller is None:
            return
        images = self._images[caller]
        self._add(images.pop(id), -1)
        if not images:  # so that rounding errors don't stay for ever
            del self._images[caller]
            for owed in self._owed.values():
                owed.pop(caller, None)

    def images(self, stage: Stage) -> int:
        """Return how many images are not done with the stage."""
        return self._counts[stage]

    def by_caller(self, stage: Stage) -> Amounts:
        """Return the GPU-seconds of a stage, by caller."""
        return self._owed[stage]

    def total(self, stage: Stage) -> float:
        """Return the GPU-seconds of a stage."""
        return sum(self._owed[stage].values())

    def earlier(self, stage: Stage, caller: Caller, due: float) -> float:
        """Return the GPU-seconds of a caller's images that are due by then."""
        images = self._images.get(caller, {}).values()
        return sum(image.seconds.get(stage, 0.0) for image in images if image.due <= due)

    def _add(self, image: OwedImage, sign: int) -> None:
        for stage, seconds in image.seconds.items():
            owed = self._owed[stage]
            owed[image.caller] = max(0.0, owed.get(image.caller, 0.0) + sign * seconds)
            self._counts[stage] += sign
