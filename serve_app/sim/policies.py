"""The policies that are held against each other: the service's, and what Ray Serve does by itself.

Knows no clock but the time it is told. The service's are `core`'s own; Serve's are written after
its power-of-two-choices router and its autoscaling by requests under way (2.60).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from math import ceil
from random import Random

from serve_app.core.homes import rank_homes
from serve_app.core.scaling import Aims, Course, Flow, Pool, replicas_wanted, share_out
from serve_app.core.spec import Stage
from serve_app.sim.cluster import Look, Router, Scaler
from serve_app.sim.replica import Simple, SimReplica


def route_by_owed_work() -> Router:
    """Where the image would be done soonest and costs least, by what each replica owes."""
    clock, chosen = count(1), dict[str, int]()

    def route(pool: Sequence[SimReplica], sample: Simple, steps: int, turn: float) -> SimReplica:
        shape = sample.spec.latent_shape
        homes = [one.home.open_to(shape, turn) for one in pool]
        best = rank_homes(homes, chosen, shape, steps)[0]
        chosen[best] = next(clock)
        return next(one for one in pool if one.id == best)

    return route


def route_by_requests(draw: Random) -> Router:
    """The one with fewer images of two that are drawn."""

    def route(pool: Sequence[SimReplica], sample: Simple, steps: int, turn: float) -> SimReplica:
        two = draw.sample(range(len(pool)), min(2, len(pool)))
        return min((pool[index] for index in two), key=lambda one: one.images)

    return route


Wanted = Callable[[Stage, Look, float], int]


def scale_by_owed_work(gpus: int, least: Mapping[Stage, int], aims: Aims) -> Scaler:
    """As many replicas as the work that is owed and arrives needs."""
    flows = {stage: Flow() for stage in Stage}

    def wanted(stage: Stage, look: Look, now: float) -> int:
        flows[stage] = flows[stage].seen(look.arrived, now)
        pool = Pool(look.replicas, least[stage], gpus, look.owed, flows[stage].per_second)
        return replicas_wanted(pool, aims)

    return _steered(gpus, least, aims, wanted)


def scale_by_requests(gpus: int, least: Mapping[Stage, int], aims: Aims, each: float) -> Scaler:
    """A replica for every so many images under way."""

    def wanted(stage: Stage, look: Look, now: float) -> int:
        return min(gpus, max(least[stage], ceil(look.images / each)))

    return _steered(gpus, least, aims, wanted)


def _steered(gpus: int, least: Mapping[Stage, int], aims: Aims, wanted: Wanted) -> Scaler:
    """The same patience for both, and the same number of GPUs."""
    courses = {stage: Course(least[stage]) for stage in Stage}

    def scale(now: float, looks: Mapping[Stage, Look]) -> Mapping[Stage, int]:
        for stage, look in looks.items():
            courses[stage] = courses[stage].steered(wanted(stage, look, now), now, aims)
        return share_out({stage: courses[stage].target for stage in Stage}, least, gpus)

    return scale
