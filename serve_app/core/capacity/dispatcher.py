"""The dispatcher: which images wait for a place on a replica, which is next, and where it goes.

No event loop, no clock and no Ray. The service's router and the simulator use the same class; each
brings its own view of the replicas.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.scheduling.fair_shares import FairShares


class Replicas(Protocol):
    """The replicas of one stage, as a dispatcher needs to know them. `Fleet` is the service's."""

    def isolated_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take on a replica that does nothing else."""

    def are_full(self) -> bool:
        """Return whether none has a place for any caller. It may be False though none has."""

    def rank(self, sample: Sample[Any], segment: StageSegment) -> Sequence[str]:
        """Return the ids of the replicas with a free place for the image, the best one first."""

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> float:
        """Count the image as work of that replica, and of no other.

        Returns the GPU seconds that it is predicted to take, in full batches.
        """


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

    An image waits while every replica has enough work for its next batches. The next place goes to
    the caller who has had the least GPU time by its weight, and there to the most urgent image: the
    one with the earliest `due` time, and of equals the first to come. A caller is charged with what
    its image is predicted to take; `charge` corrects that when it is measured.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._waiting: dict[str, WaitingImage] = {}
        # By the caller's name: heaps by urgency, in which removed images stay until they are first.
        self._by_caller: dict[str, list[tuple[float, int, WaitingImage]]] = {}
        self._shares = FairShares()
        self._numbers = count()
        self._sent = 0

    @property
    def waiting(self) -> Sequence[WaitingImage]:
        """The images that wait, in the order in which they came."""
        return tuple(self._waiting.values())

    def add(self, key: str, sample: Sample[Any], segment: StageSegment, arrived: float) -> None:
        """Let an image wait that arrived at `arrived`, a time in seconds."""
        due = arrived + self._replicas.isolated_seconds(sample, segment)
        self.remove(key)
        image = self._waiting[key] = WaitingImage(key, sample, segment, due)
        self._shares.enter(sample.caller)
        heap = self._by_caller.setdefault(sample.caller.name, [])
        heapq.heappush(heap, (due, next(self._numbers), image))

    def remove(self, key: str) -> None:
        """Let an image wait no longer; do nothing if it does not wait."""
        image = self._waiting.pop(key, None)
        if image is not None:
            self._shares.leave(image.sample.caller)

    def charge(self, caller: Caller, seconds: float) -> None:
        """Charge a caller with GPU seconds that were measured, or take a prediction back."""
        self._shares.correct(caller, seconds)

    def next_assignment(self) -> Assignment | None:
        """Return the next image and its replicas; None if none waits or no place is free.

        It is the most urgent one of the first caller that a replica has a place for.
        """
        return None if self._replicas.are_full() else self._first_with_place()

    def dispatch(self, assignment: Assignment, replica: str | None = None) -> Dispatched | None:
        """Send the next image; return None if no image waits or no place is free any more.

        `replica` is the one of the assignment's replicas that agreed to take an image, by default
        the best one. If another image is next by now, or others have been sent since the assignment
        was made, its places may be taken: then the next image goes to the replica that is best now.
        """
        is_last = assignment.sent == self._sent
        current = self._first_with_place(assignment) if is_last else self.next_assignment()
        if current is None:
            return None
        destination = replica or assignment.replicas[0]
        if not is_last or destination not in current.replicas:
            destination = current.replicas[0]
        image = current.image
        self._sent += 1
        seconds = self._replicas.send(destination, image.sample, image.segment)
        self._shares.serve([(image.sample.caller, seconds)])
        self.remove(image.key)
        return Dispatched(image, destination)

    def _first_with_place(self, known: Assignment | None = None) -> Assignment | None:
        """Return the first image that a replica has a place for; that of `known` has its places."""
        for image in self._in_fair_order():
            if known and image is known.image:
                return known
            replicas = tuple(self._replicas.rank(image.sample, image.segment))
            if replicas:
                return Assignment(image, replicas, self._sent)
        return None

    def _in_fair_order(self) -> list[WaitingImage]:
        """Return the most urgent image of each caller, that of the least virtual time first."""
        firsts = [first for name in list(self._by_caller) if (first := self._most_urgent(name))]
        order = [
            (self._shares.time(image.sample.caller), due, number, image)
            for due, number, image in firsts
        ]
        return [image for *_, image in sorted(order)]

    def _most_urgent(self, name: str) -> tuple[float, int, WaitingImage] | None:
        heap = self._by_caller[name]
        while heap:
            first = heap[0]
            if self._waiting.get(first[-1].key) is first[-1]:
                return first
            heapq.heappop(heap)  # it was removed
        del self._by_caller[name]
        return None
