"""The replicas of one stage, with the dispatchers in front of them: one of each ingress.

A `Fleet` learns what replicas have to do from their reports; a pool reads it off the simulated
replicas.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from serve_app.core.caller import Caller
from serve_app.core.capacity.dispatcher import Dispatcher, WaitingImage
from serve_app.core.capacity.replica_report import encode_batch_key
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.replica import SimReplica, SimSample


@dataclass(frozen=True, slots=True)
class ImageToRoute:
    """What a router may know of an image."""

    batch_key: str  # encoded
    steps: int  # that it takes at the stage
    alone_seconds: float  # that it adds to a replica where no other image has its key


# Chooses one of the replicas with a free place.
Router = Callable[[Sequence[SimReplica], ImageToRoute], SimReplica]


class ReplicaPool:
    """The replicas of a stage, ready, loading or leaving; its dispatchers' `Replicas`."""

    def __init__(
        self,
        stage: Stage,
        size: BatchSize,
        speed: GpuSpeed,
        route: Router,
        ingresses: int = 1,
    ) -> None:
        self.replicas: list[SimReplica] = []
        self._dispatchers = [Dispatcher(self) for _ in range(ingresses)]
        self._stage, self._size, self._speed, self._route = stage, size, speed, route
        self._next = 0  # the dispatcher that gets the next place
        self._sent_by: dict[str, tuple[Dispatcher, float]] = {}  # and the predicted seconds, by id

    @property
    def staying(self) -> list[SimReplica]:
        """The replicas that are not being removed, the oldest first."""
        return [replica for replica in self.replicas if not replica.leaving]

    @property
    def images(self) -> int:
        """The images of the stage, on replicas or waiting."""
        return sum(replica.images for replica in self.replicas) + len(self._waiting)

    @property
    def owed_seconds(self) -> float:
        """GPU-seconds that these images still need here, in full batches."""
        owed = sum(replica.owed_seconds for replica in self.replicas)
        return owed + sum(self._amortized_seconds(image) for image in self._waiting)

    @property
    def _waiting(self) -> list[WaitingImage]:
        return [image for dispatcher in self._dispatchers for image in dispatcher.waiting]

    def add(self, sample: SimSample, segment: StageSegment, now: float, ingress: int) -> None:
        """Let an image wait at the dispatcher of an ingress."""
        self._dispatchers[ingress].add(sample.id, sample, segment, now)

    def dispatch(self) -> Iterator[tuple[str, SimReplica]]:
        """Send waiting images while there are free places; yield the id and the replica of each.

        The ingresses get places in turn.
        """
        sent = True
        while sent:
            sent = False
            for dispatcher in self._dispatchers[self._next :] + self._dispatchers[: self._next]:
                assignment = dispatcher.next_assignment()
                if assignment and (dispatched := dispatcher.dispatch(assignment)):
                    image = dispatched.image
                    self._sent_by[image.key] = dispatcher, self._amortized_seconds(image)
                    self._next = (self._dispatchers.index(dispatcher) + 1) % len(self._dispatchers)
                    sent = True
                    yield image.key, self.replica(dispatched.replica)

    def drop(self, id: str, caller: Caller) -> None:
        """Let an image wait no longer, and take back what was predicted of one that was sent."""
        for dispatcher in self._dispatchers:
            dispatcher.remove(id)
        if sent := self._sent_by.pop(id, None):
            dispatcher, seconds = sent
            dispatcher.charge(caller, -seconds)

    def end_turn(self, replica: SimReplica) -> tuple[SimSample, ...]:
        """End a replica's turn, and charge its callers; return the samples that have left it."""
        finished = replica.end_turn()
        for caller, seconds in replica.charges:
            for dispatcher in self._dispatchers:
                dispatcher.charge(caller, seconds)
        for sample in finished:
            dispatcher, seconds = self._sent_by.pop(sample.id)
            dispatcher.charge(sample.caller, -seconds)
        return finished

    def replica(self, id: str) -> SimReplica:
        """Return a replica by its id."""
        return next(replica for replica in self.replicas if replica.id == id)

    def batched_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take in full batches, from now on."""
        return self._speed.steps(sample, segment.stop, self._size, self._size.images)

    def are_full(self) -> bool:
        """Return whether no replica has a place for any caller."""
        return all(replica.load.is_full for replica in self.replicas if replica.may_get_images)

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        """Return the replica that the router chooses, or nothing if no place is free."""
        key, caller = encode_batch_key(sample.usual_batch_key), sample.caller
        available = [
            replica
            for replica in self.replicas
            if replica.may_get_images and replica.load.has_place(caller, key)
        ]
        if not available:
            return []
        steps = max(0, segment.stop - sample.index)
        empty = self._speed.key_load(sample, steps, self._size)
        alone = empty.added_seconds(steps, self._size.images)
        return [self._route(available, ImageToRoute(key, steps, alone)).id]

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> float:
        """Give the image to a replica; return its predicted seconds."""
        self.replica(replica).add(cast(SimSample, sample), segment)
        return self._speed.amortized_seconds(sample, segment, self._size)

    def _amortized_seconds(self, image: WaitingImage) -> float:
        return self._speed.amortized_seconds(image.sample, image.segment, self._size)
