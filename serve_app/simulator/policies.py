"""The policies that are held against each other: the service's, and Ray Serve's way to route.

Knows no clock but the time it is told. The service's are `core`'s own; Serve's is written after
its power-of-two-choices router (2.60).
"""

from collections.abc import Mapping, Sequence
from itertools import count
from random import Random

from serve_app.core.capacity.autoscaler import Autoscaler, ScalingTargets
from serve_app.core.capacity.routing import rank_replicas
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import Router, Scaler, StageObservation
from serve_app.simulator.replica import SimReplica, SimSample


def route_by_owed_work() -> Router:
    """Where the image would be done soonest and costs least, by what each replica owes."""
    clock, chosen = count(1), dict[str, int]()

    def route(pool: Sequence[SimReplica], sample: SimSample, steps: int, turn: float) -> SimReplica:
        shape = sample.spec.latent_shape
        homes = [one.load.with_key(shape, turn) for one in pool]
        best = rank_replicas(homes, chosen, shape, steps)[0]
        chosen[best] = next(clock)
        return next(one for one in pool if one.id == best)

    return route


def route_by_requests(draw: Random) -> Router:
    """The one with fewer images of two that are drawn."""

    def route(pool: Sequence[SimReplica], sample: SimSample, steps: int, turn: float) -> SimReplica:
        two = draw.sample(range(len(pool)), min(2, len(pool)))
        return min((pool[index] for index in two), key=lambda one: one.images)

    return route


def scale_by_owed_work(gpus: int, aims: ScalingTargets) -> Scaler:
    """As many replicas as the work that is owed and arrives needs: the service's own helm."""
    helm = Autoscaler()

    def scale(now: float, seen: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        nonlocal helm
        helm = helm.observe({stage: one.look for stage, one in seen.items()}, now, aims, gpus)
        return helm.targets

    return scale
