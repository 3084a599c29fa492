"""`OwedWork`: what accepted images will take, by stage and caller, kept up to date image by image.

Asking costs nothing per image but those that are due in the same second: thousands may wait. No
clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import floor

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class OwedImage:
    """What one image will take: GPU-seconds in full batches, by stage that it is not done with."""

    caller: Caller
    due: float  # seconds: when it would be done, had it stepped in full batches at once
    seconds: Mapping[Stage, float]


@dataclass(slots=True)
class _DueSecond:
    """The images of one caller that are due in one second; never empty."""

    images: dict[str, OwedImage] = field(default_factory=dict)  # by id
    owed: dict[Stage, float] = field(default_factory=dict)  # GPU-seconds of all of them

    def add(self, image: OwedImage, sign: int) -> None:
        for stage, seconds in image.seconds.items():
            self.owed[stage] = self.owed.get(stage, 0.0) + sign * seconds


class OwedWork:
    """The images that are owed, by id. Their owner is the only writer."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._due: dict[Caller, dict[int, _DueSecond]] = {}  # by the second
        self._images: dict[str, OwedImage] = {}  # by id
        self._owed: dict[Stage, dict[Caller, float]] = {stage: {} for stage in stages}
        self._counts = dict.fromkeys(self._owed, 0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that are counted."""
        return tuple(self._owed)

    def __len__(self) -> int:
        return len(self._images)

    def put(self, id: str, image: OwedImage) -> None:
        """Count an image, in place of what was known of it before."""
        self.remove(id)
        self._images[id] = image
        groups = self._due.setdefault(image.caller, {})
        group = groups.setdefault(floor(image.due), _DueSecond())
        group.images[id] = image
        group.add(image, 1)
        self._add(image, 1)

    def remove(self, id: str) -> None:
        """Forget an image, if it is known."""
        image = self._images.pop(id, None)
        if image is None:
            return
        self._add(image, -1)
        groups = self._due[image.caller]
        group = groups[floor(image.due)]
        del group.images[id]
        group.add(image, -1)
        # What is empty goes, so that rounding errors don't stay for ever.
        if not group.images:
            del groups[floor(image.due)]
        if not groups:
            del self._due[image.caller]
            for owed in self._owed.values():
                owed.pop(image.caller, None)

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
        groups, second = self._due.get(caller, {}), floor(due)
        before = sum(group.owed.get(stage, 0.0) for at, group in groups.items() if at < second)
        same = groups.get(second, _DueSecond()).images.values()
        return before + sum(image.seconds.get(stage, 0.0) for image in same if image.due <= due)

    def _add(self, image: OwedImage, sign: int) -> None:
        for stage, seconds in image.seconds.items():
            owed = self._owed[stage]
            owed[image.caller] = max(0.0, owed.get(image.caller, 0.0) + sign * seconds)
            self._counts[stage] += sign
