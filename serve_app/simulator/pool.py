"""The replicas of one stage, with the dispatcher in front of them.

A `Fleet` learns what replicas have to do from their reports; a pool reads it off the simulated
replicas.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from serve_app.core.capacity.dispatcher import Dispatcher
from serve_app.core.capacity.routing import max_queued_images
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.replica import SimReplica, SimSample

# Chooses one of the replicas with a free place, for a sample with this many steps, each of which
# takes this many seconds.
Router = Callable[[Sequence[SimReplica], SimSample, int, float], SimReplica]


class ReplicaPool:
    """The replicas of a stage, ready, loading or leaving; a dispatcher's `Replicas`."""

    def __init__(self, stage: Stage, size: BatchSize, speed: GpuSpeed, route: Router) -> None:
        self.replicas: list[SimReplica] = []
        self.dispatcher = Dispatcher(self)
        self._stage, self._size, self._speed, self._route = stage, size, speed, route

    @property
    def staying(self) -> list[SimReplica]:
        """The replicas that are not being removed, the oldest first."""
        return [replica for replica in self.replicas if not replica.leaving]

    @property
    def images(self) -> int:
        """The images of the stage, on replicas or waiting."""
        on_replicas = sum(replica.images for replica in self.replicas)
        return on_replicas + len(self.dispatcher.waiting)

    @property
    def owed_seconds(self) -> float:
        """GPU-seconds that these images still need here, in full batches."""
        owed = sum(replica.owed_seconds for replica in self.replicas)
        return owed + sum(
            self._speed.amortized_seconds(image.sample, image.segment, self._size)
            for image in self.dispatcher.waiting
        )

    def replica(self, id: str) -> SimReplica:
        """Return a replica by its id."""
        return next(replica for replica in self.replicas if replica.id == id)

    def isolated_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take on a replica that does nothing else."""
        return _steps_left(sample, segment) * self._step_seconds(sample)

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        """Return the replica that the router chooses, or nothing if no place is free."""
        limit = max_queued_images(self._size.images)
        available = [replica for replica in self.replicas if replica.accepts(limit)]
        if not available:
            return []
        steps, seconds = _steps_left(sample, segment), self._step_seconds(sample)
        return [self._route(available, sample, steps, seconds).id]

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> None:
        """Give the image to a replica."""
        self.replica(replica).add(cast(SimSample, sample), segment)

    def _step_seconds(self, sample: Sample[Any]) -> float:
        spec = sample.spec
        return self._speed.step(self._stage, spec.width, spec.height, self._size.rows)


def _steps_left(sample: Sample[Any], segment: StageSegment) -> int:
    return max(0, segment.stop - sample.index)
