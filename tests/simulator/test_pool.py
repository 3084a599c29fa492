"""The replicas of one simulated stage, and which of them get images."""

from serve_app.core.diffusion.sample import StageSegment, new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.pool import ReplicaPool
from serve_app.simulator.replica import SimReplica, SimSample
from serve_app.simulator.traces import Arrival

SIZE, SPEED = BatchSize(4, (8,)), GpuSpeed()
PLACES = 12  # of a lone caller on one replica


def pool_with(**replicas: tuple[bool, bool]) -> ReplicaPool:
    """Return a pool of base replicas, of each whether it is ready and whether it is removed."""
    pool = ReplicaPool(Stage.BASE, SIZE, SPEED, route_by_owed_work())
    for id, (ready, leaving) in replicas.items():
        replica = SimReplica(id, Stage.BASE, SIZE, SPEED)
        replica.ready, replica.leaving = ready, leaving
        pool.replicas.append(replica)
    return pool


def add_image(pool: ReplicaPool, id: str) -> None:
    spec, schedule, _ = image_of(Arrival(0.0, steps=20), refiner=False)
    sample: SimSample = new_sample(id, spec, schedule, Stage.BASE)
    pool.add(sample, StageSegment(Stage.BASE, 20, last=True), 0.0, ingress=0)


def test_images_go_to_no_replica_that_loads_or_is_removed() -> None:
    pool = pool_with(loads=(False, False), serves=(True, False), leaves=(True, True))
    for number in range(PLACES + 1):
        add_image(pool, str(number))
    assert {replica.id for _, replica in pool.dispatch()} == {"serves"}
    assert [replica.images for replica in pool.replicas] == [0, PLACES, 0]
    assert pool.images == PLACES + 1


def test_without_a_replica_images_wait() -> None:
    pool = pool_with()
    add_image(pool, "waits")
    assert not list(pool.dispatch())
    assert pool.images == 1
