"""The policies that are compared: the service's own, and Ray Serve's way to route.

The service's policies are `core`'s own code. Serve's is written after its power-of-two-choices
router (Ray 2.60).
"""

from collections.abc import Mapping, Sequence
from itertools import count
from random import Random

from serve_app.core.capacity.autoscaler import Autoscaler, ScalingTargets
from serve_app.core.capacity.routing import Candidate, rank_replicas
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.observation import Scaler, StageObservation
from serve_app.simulator.pool import ImageToRoute, Router
from serve_app.simulator.replica import SimReplica


def route_by_owed_work() -> Router:
    """Return a router that chooses the replica which finishes the image soonest and costs least."""
    clock, last_chosen = count(1), dict[str, int]()

    def route(replicas: Sequence[SimReplica], image: ImageToRoute) -> SimReplica:
        by_id = {replica.id: replica for replica in replicas}
        candidates: list[Candidate] = []
        for replica in replicas:
            load = replica.load
            added = load.added_seconds(image.batch_key, image.steps, image.alone_seconds)
            candidates.append((replica.id, load.seconds, added))
        best = rank_replicas(candidates, last_chosen)[0]
        last_chosen[best] = next(clock)
        return by_id[best]

    return route


def route_by_requests(rng: Random) -> Router:
    """Return a router that draws two replicas and chooses the one with fewer images."""

    def route(replicas: Sequence[SimReplica], image: ImageToRoute) -> SimReplica:
        drawn = rng.sample(range(len(replicas)), min(2, len(replicas)))
        return min((replicas[index] for index in drawn), key=lambda replica: replica.images)

    return route


def scale_by_owed_work(gpus: int, targets: ScalingTargets) -> Scaler:
    """Return the service's own autoscaler for a fixed number of GPUs."""
    autoscaler = Autoscaler()

    def scale(now: float, observations: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        nonlocal autoscaler
        loads = {stage: observation.load for stage, observation in observations.items()}
        autoscaler = autoscaler.observe(loads, now, targets, gpus)
        return autoscaler.targets

    return scale
