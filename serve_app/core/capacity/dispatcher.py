"""The dispatcher: which images wait for a place on a replica, which is next, and where it goes.

No event loop, no clock and no Ray. The service's router and the simulator use the same class; each
brings its own view of the replicas.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from serve_app.core.caller import Caller
from serve_app.core.diffusion.keys import BatchKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.scheduling.fair_shares import FairShares

# Batch keys of one caller for which places are sought, those of its most urgent images: a caller
# with ever other extensions should not make a decision take ever longer.
MAX_KEYS = 16


class Replicas(Protocol):
    """The replicas of one stage, as a dispatcher needs to know them. `Fleet` is the service's."""

    def batched_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take in full batches, from now on."""

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


_Entry = tuple[float, int, WaitingImage]  # its due time, and its number in the order of arrival


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
    the caller who has had the least GPU time by its weight, and there to the most urgent image that
    a replica has a place for: the one with the earliest `due` time, and of equals the first to
    come. Images of one batch key have places where those of another have none, if they fill up a
    batch: so images that are less urgent may use what would be left empty. A caller is charged with
    what its image is predicted to take; `charge` corrects that when it is measured.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._waiting: dict[str, WaitingImage] = {}
        # By the caller's name and batch key: heaps by urgency, in which removed images stay until
        # they are first.
        self._queues: dict[str, dict[BatchKey, list[_Entry]]] = {}
        # By the caller's name: see `_most_urgent`. Those whose images have changed are not in it.
        self._urgent: dict[str, list[_Entry]] = {}
        self._shares = FairShares()
        self._numbers = count()
        self._sent = 0

    @property
    def waiting(self) -> Sequence[WaitingImage]:
        """The images that wait, in the order in which they came."""
        return tuple(self._waiting.values())

    def add(self, key: str, sample: Sample[Any], segment: StageSegment, arrived: float) -> None:
        """Let an image wait that arrived at `arrived`, a time in seconds."""
        due = arrived + self._replicas.batched_seconds(sample, segment)
        self.remove(key)
        image = self._waiting[key] = WaitingImage(key, sample, segment, due)
        self._shares.enter(sample.caller)
        queues = self._queues.setdefault(sample.caller.name, {})
        queue = queues.setdefault(sample.usual_batch_key, [])
        heapq.heappush(queue, (due, next(self._numbers), image))
        self._urgent.pop(sample.caller.name, None)

    def remove(self, key: str) -> None:
        """Let an image wait no longer; do nothing if it does not wait."""
        image = self._waiting.pop(key, None)
        if image is not None:
            self._shares.leave(image.sample.caller)
            self._urgent.pop(image.sample.caller.name, None)

    def charge(self, caller: Caller, seconds: float) -> None:
        """Charge a caller with GPU seconds that were measured, or take a prediction back."""
        self._shares.correct(caller, seconds)

    def next_assignment(self) -> Assignment | None:
        """Return the next image and its replicas; None if none waits or no place is free.

        It is an image of the first caller that a replica has a place for, the most urgent such one.
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

    def _in_fair_order(self) -> Iterator[WaitingImage]:
        """Yield the most urgent image of each batch key of each caller, in the order of urgency.

        The images of the caller with the least virtual time come first, and among equals those of
        the caller with the most urgent image.
        """
        callers = []
        for name in list(self._queues):
            if urgent := self._urgent.get(name) or self._most_urgent(name):
                due, number, image = urgent[0]
                callers.append((self._shares.time(image.sample.caller), due, number, urgent))
        for *_, urgent in sorted(callers):
            yield from (image for *_, image in urgent)

    def _most_urgent(self, name: str) -> list[_Entry]:
        """Return the most urgent entry of each batch key of a caller, the most urgent first."""
        queues, firsts = self._queues[name], []
        for key, queue in list(queues.items()):
            while queue and self._waiting.get(queue[0][-1].key) is not queue[0][-1]:
                heapq.heappop(queue)  # it was removed
            if queue:
                firsts.append(queue[0])
            else:
                del queues[key]
        if not queues:
            del self._queues[name]
            return []
        self._urgent[name] = heapq.nsmallest(MAX_KEYS, firsts)
        return self._urgent[name]
