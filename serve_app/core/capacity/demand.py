"""`Demand`: the work that in-flight images need from a stage, as reported to the autoscaler.

It travels as named floats, because Serve's autoscaling metrics carry nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class Demand:
    """The work that in-flight images need from a stage."""

    images: float = 0.0  # in flight, at this stage or still to come to it
    owed: float = 0.0  # GPU-seconds that these images still need here, in full batches
    upstream: float = 0.0  # the part of `owed` of images that are still at another stage
    arrived_total: float = 0.0  # GPU-seconds here of all images ever accepted: it only grows

    def __add__(self, other: "Demand") -> "Demand":
        """Return the sum of two demands, field by field."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Demand(*(own + others for own, others in pairs))


def to_wire(demands: Mapping[Stage, Demand]) -> dict[str, float]:
    """Return the demand of each stage under names such as `base_owed`."""
    return {
        f"{stage}_{field.name}": float(getattr(demand, field.name))
        for stage, demand in demands.items()
        for field in fields(demand)
    }


def from_wire(numbers: Mapping[str, float], stages: Iterable[Stage]) -> Demand:
    """Return the sum of the demands of these stages; a number that is missing counts as 0.

    An image that goes through two of the stages counts twice.
    """
    names = [field.name for field in fields(Demand)]
    demands = (Demand(*(numbers.get(f"{stage}_{name}", 0.0) for name in names)) for stage in stages)
    return sum(demands, Demand())


def stage_load(demand: Demand, *, replicas: int, min_replicas: int, max_replicas: int) -> StageLoad:
    """Return the load of a stage with this demand and this number of replicas."""
    return StageLoad(
        replicas=replicas,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        images=int(demand.images),
        owed=demand.owed,
        arrived_total=demand.arrived_total,
        upstream=demand.upstream,
    )
