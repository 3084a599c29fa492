"""`Demand`: what the images under way want of a stage, as those who hold them tell it to whoever
chooses the number of replicas.

Knows no replicas and no policy. It travels as plain numbers: Serve carries nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class Demand:
    """What is wanted of a stage."""

    images: float = 0.0  # under way that are there, or still to come there
    owed: float = 0.0  # GPU-seconds that they still need there, in full batches
    upstream: float = 0.0  # of those, what images need that are at another stage yet
    arrived_total: float = 0.0  # GPU-seconds there of all that was ever accepted: they only grow

    def __add__(self, other: "Demand") -> "Demand":
        """What both want."""
        mine, theirs = astuple(self), astuple(other)
        return Demand(*(one + more for one, more in zip(mine, theirs, strict=True)))


def to_wire(demands: Mapping[Stage, Demand]) -> dict[str, float]:
    """What is wanted of each stage, by names like `base_owed`."""
    return {
        f"{stage}_{field.name}": float(getattr(demand, field.name))
        for stage, demand in demands.items()
        for field in fields(demand)
    }


def from_wire(numbers: Mapping[str, float], stages: Iterable[Stage]) -> Demand:
    """What is wanted of these stages together; nothing of one that is not named.

    An image that goes through two of them counts twice.
    """
    named = [field.name for field in fields(Demand)]
    return sum(
        (Demand(*(numbers.get(f"{stage}_{name}", 0.0) for name in named)) for stage in stages),
        Demand(),
    )


def stage_load(demand: Demand, *, replicas: int, min_replicas: int, max_replicas: int) -> StageLoad:
    """A stage with so many replicas, or so many to come, as the helm sees it."""
    images, owed, coming, arrived = astuple(demand)
    return StageLoad(replicas, min_replicas, max_replicas, int(images), owed, arrived, coming)
