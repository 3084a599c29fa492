"""The dispatcher: which images wait for a place on a replica, which is next, and where it goes.

No event loop, no clock and no Ray. The service's router and the simulator use the same class; each
brings its own view of the replicas.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from serve_app.core.diffusion.sample import Sample, StageSegment


class Replicas(Protocol):
    """The replicas of one stage, as a dispatcher needs to know them. `Fleet` is the service's."""

    def isolated_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take on a replica that does nothing else."""

    def rank(self, sample: Sample[Any], segment: StageSegment) -> Sequence[str]:
        """Return the ids of the replicas with a free place for the image, the best one first."""

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> None:
        """Count the image as work of that replica, and of no other."""


@dataclass(frozen=True, slots=True)
class WaitingImage:
    """An image that waits for a place."""

    key: str
    sample: Sample[Any]
    segment: StageSegment
    due: float  # seconds: when it would have been done, had it run alone since it arrived


@dataclass(frozen=True, slots=True)
class Assignment:
    """The next image, and the replicas with a place for it, the best one first."""

    image: WaitingImage
    replicas: tuple[str, ...]
    sent: int  # images that had been sent when this was decided


@dataclass(frozen=True, slots=True)
class Dispatched:
    """An image that has left the queue, and its replica."""

    image: WaitingImage
    replica: str


class Dispatcher:
    """The queue in front of the replicas of one stage. Its owner is the only writer.

    An image waits while every replica has enough work for its next batches. The most urgent image
    gets the next place: the one with the earliest `due` time, and of equals the first to come.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._waiting: dict[str, WaitingImage] = {}
        self._by_urgency: list[tuple[float, int, WaitingImage]] = []  # a heap; removed ones stay
        self._numbers = count()
        self._sent = 0

    @property
    def waiting(self) -> Sequence[WaitingImage]:
        """The images that wait, in the order in which they came."""
        return tuple(self._waiting.values())

    def add(self, key: str, sample: Sample[Any], segment: StageSegment, arrived: float) -> None:
        """Let an image wait that arrived at `arrived`, a time in seconds."""
        due = arrived + self._replicas.isolated_seconds(sample, segment)
        image = self._waiting[key] = WaitingImage(key, sample, segment, due)
        heapq.heappush(self._by_urgency, (due, next(self._numbers), image))

    def remove(self, key: str) -> None:
        """Let an image wait no longer; do nothing if it does not wait."""
        self._waiting.pop(key, None)

    def next_assignment(self) -> Assignment | None:
        """Return the most urgent image and its replicas; None if none waits or no place is free."""
        image = self._most_urgent()
        if image is None:
            return None
        replicas = tuple(self._replicas.rank(image.sample, image.segment))
        return Assignment(image, replicas, self._sent) if replicas else None

    def dispatch(self, assignment: Assignment, replica: str | None = None) -> Dispatched | None:
        """Send the most urgent image; return None if no image waits or no place is free any more.

        `replica` is the one of the assignment's replicas that agreed to take an image, by default
        the best one. If other images have been sent since the assignment was made, its places may
        be taken: then the image goes to the replica that is best now.
        """
        image = self._most_urgent()
        if image is None:
            return None
        destination = replica or assignment.replicas[0]
        if assignment.sent != self._sent:
            current = self.next_assignment()
            if current is None:
                return None
            destination = current.replicas[0]
        heapq.heappop(self._by_urgency)
        del self._waiting[image.key]
        self._sent += 1
        self._replicas.send(destination, image.sample, image.segment)
        return Dispatched(image, destination)

    def _most_urgent(self) -> WaitingImage | None:
        while self._by_urgency:
            image = self._by_urgency[0][-1]
            if self._waiting.get(image.key) is image:
                return image
            heapq.heappop(self._by_urgency)  # it was removed
        return None
