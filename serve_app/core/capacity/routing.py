"""Where an image goes: the replica that does it soonest, and costs the others least.

A replica steps one shape at a time, a batch of so many images, and lanes that are padded cost as
much as used ones: so what it has to do is not the sum of its images. Pure functions, for the
service's router and the simulator's. Knows no samples and no replicas, only their numbers.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

MAX_QUEUED_BATCHES = 3  # batches that a replica may have images for, the one that steps among them
_IDLE_DISCOUNT = (
    0.9  # of its seconds, what an idle replica counts: measured prices differ by chance
)
MARGINAL_WEIGHT = 2.0  # what a second of a replica's time counts, to one of the image's own waiting


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """The images of one shape on a replica."""

    steps: int  # that they have still to take, all together
    max_steps: int  # the most that one of them has
    step_seconds: float  # seconds of a step there, however many take it

    def seconds(self, images: int) -> float:
        """Until they are done, `images` of them in a batch: never before the longest is."""
        return max(self.steps / images, self.max_steps) * self.step_seconds


@dataclass(frozen=True)
class ReplicaLoad:
    """A replica as somebody sees it who looks for a home for an image."""

    id: str
    batch_images: int  # that step together
    loads_by_key: Mapping[Hashable, KeyLoad]  # by shape
    load_seconds: float = 0.0  # seconds until it has the image's model

    @cached_property
    def seconds(self) -> float:
        """Until it has done all that is there."""
        return sum(crowd.seconds(self.batch_images) for crowd in self.loads_by_key.values())

    def with_key(self, key: Hashable, step_seconds: float) -> "ReplicaLoad":
        """The same with a crowd of that shape, be it of nobody, whose steps take `turn` seconds."""
        if key in self.loads_by_key:
            return self
        return replace(self, loads_by_key={**self.loads_by_key, key: KeyLoad(0, 0, step_seconds)})

    def marginal_seconds(self, key: Hashable, steps: int) -> float:
        """The seconds that one more image adds: few where a batch of its shape has a place free."""
        crowd = self.loads_by_key[key]
        with_it = replace(crowd, steps=crowd.steps + steps, max_steps=max(crowd.max_steps, steps))
        return (
            self.load_seconds
            + with_it.seconds(self.batch_images)
            - crowd.seconds(self.batch_images)
        )


def rank_replicas(
    replicas: Iterable[ReplicaLoad], last_chosen: Mapping[str, int], key: Hashable, steps: int
) -> list[str]:
    """The replicas' ids, the best home first for an image of so many steps; all are open to its
    shape. Of equals the one longest not `chosen`, as a growing number.

    What is there already delays the image; what it adds delays it and whoever comes after it, so
    that it counts twice. In the simulator, with 256 GPUs at 85 % load, twice makes the batches as
    full as three times and the waits shorter; once leaves them half empty. While a replica is idle
    nobody comes after: time is not scarce, it counts once, and the idle one is taken unless another
    is clearly sooner.
    """
    replicas = list(replicas)
    scarce = MARGINAL_WEIGHT if all(home.seconds for home in replicas) else 1.0

    def counted(home: ReplicaLoad) -> float:
        seconds = home.seconds + scarce * home.marginal_seconds(key, steps)
        return round(seconds if home.seconds else _IDLE_DISCOUNT * seconds, 6)

    ranked = sorted((counted(home), last_chosen.get(home.id, 0), home.id) for home in replicas)
    return [id for *_, id in ranked]
