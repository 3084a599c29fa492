"""Where an image goes: the replica that does it soonest, and costs the others least.

A replica steps one shape at a time, a batch of so many images, and lanes that are padded cost as
much as used ones: so what it has to do is not the sum of its images. Pure functions, for the
service's router and the simulator's. Knows no samples and no replicas, only their numbers.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

DEPTH = 3  # batches that a replica may have images for, the one that steps among them
_IDLE = 0.9  # of its seconds, what an idle replica counts: measured prices differ by chance
PACKING = 2.0  # what a second of a replica's time counts, to one of the image's own waiting


@dataclass(frozen=True, slots=True)
class Crowd:
    """The images of one shape on a replica."""

    steps: int  # that they have still to take, all together
    longest: int  # the most that one of them has
    turn: float  # seconds of a step there, however many take it

    def seconds(self, images: int) -> float:
        """Until they are done, `images` of them in a batch: never before the longest is."""
        return max(self.steps / images, self.longest) * self.turn


@dataclass(frozen=True)
class Home:
    """A replica as somebody sees it who looks for a home for an image."""

    id: str
    images: int  # that step together
    crowds: Mapping[Hashable, Crowd]  # by shape
    load: float = 0.0  # seconds until it has the image's model

    @cached_property
    def seconds(self) -> float:
        """Until it has done all that is there."""
        return sum(crowd.seconds(self.images) for crowd in self.crowds.values())

    def open_to(self, shape: Hashable, turn: float) -> "Home":
        """The same with a crowd of that shape, be it of nobody, whose steps take `turn` seconds."""
        if shape in self.crowds:
            return self
        return replace(self, crowds={**self.crowds, shape: Crowd(0, 0, turn)})

    def more(self, shape: Hashable, steps: int) -> float:
        """The seconds that one more image adds: few where a batch of its shape has a place free."""
        crowd = self.crowds[shape]
        with_it = replace(crowd, steps=crowd.steps + steps, longest=max(crowd.longest, steps))
        return self.load + with_it.seconds(self.images) - crowd.seconds(self.images)


def rank_homes(
    homes: Iterable[Home], chosen: Mapping[str, int], shape: Hashable, steps: int
) -> list[str]:
    """The replicas' ids, the best home first for an image of so many steps; all are open to its
    shape. Of equals the one longest not `chosen`, as a growing number.

    What is there already delays the image; what it adds delays it and whoever comes after it, so
    that it counts twice. In the simulator, with 256 GPUs at 85 % load, twice makes the batches as
    full as three times and the waits shorter; once leaves them half empty. While a replica is idle
    nobody comes after: time is not scarce, it counts once, and the idle one is taken unless another
    is clearly sooner.
    """
    homes = list(homes)
    scarce = PACKING if all(home.seconds for home in homes) else 1.0

    def counted(home: Home) -> float:
        seconds = home.seconds + scarce * home.more(shape, steps)
        return round(seconds if home.seconds else _IDLE * seconds, 6)

    ranked = sorted((counted(home), chosen.get(home.id, 0), home.id) for home in homes)
    return [id for *_, id in ranked]
