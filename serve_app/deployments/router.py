"""Core's dispatcher as Ray Serve's request router of a stage.

The adapter tells the dispatcher which images wait, and the fleet what replicas report through Serve
(`record_routing_stats`).
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from serve_app.core.capacity.dispatcher import Assignment, Dispatcher
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.capacity.replica_report import key_of
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.deployments.ray_private import DispatchingRouter

logger = logging.getLogger("aura.routing")

REPORTS_EVERY = 0.5  # seconds
# Seconds between retries while waiting for a free place: not every change wakes the waiter.
_RETRY_EVERY = 0.25
_MAX_SILENCES = 256  # that are remembered, so that each makes a replica suspect once
_MAX_CANDIDATES = 3  # replicas that Serve asks one after the other, if they refuse


class OwedWorkRouter(DispatchingRouter):
    """Sends an image to the replica that finishes it soonest and delays others least.

    Serve's own router draws two replicas and takes the one with fewer requests, however long they
    are. Here an image waits while every replica has enough for its next batches. The next place
    goes to the caller whose turn it is, and of that caller's images to the most urgent: the one
    that would have been done first, had it run alone since it arrived. Requests that are not images
    go to any replica, as Serve has it.
    """

    def initialize_state(self, images: int = 1, sender: str | None = None, **_: Any) -> None:
        """Begin without requests; `images` step together on a replica, until it reports itself.

        `sender` is another one in each process: by default at random.
        """
        self._fleet = Fleet(images, uuid4().hex if sender is None else sender)
        self._dispatcher = Dispatcher(self._fleet)
        self._waiting: dict[str, PendingRequest] = {}  # by a key of our own
        self._keys = count()
        # What each of Serve's tasks asks replicas for: every task has a context of its own. Not a
        # global of the module: Serve pickles this class by value, with the globals that it uses.
        self._assignment: ContextVar[Assignment | None] = ContextVar("assignment", default=None)
        self._unreadable: set[str] = set()  # replicas whose reports can't be read
        # Images that replicas fell silent with, and these replicas.
        self._silences: deque[tuple[str, tuple[str, ...]]] = deque(maxlen=_MAX_SILENCES)
        self._changed, self._choosing = asyncio.Event(), asyncio.Lock()

    def request_waits(self, pending: PendingRequest) -> str:
        """Add the image to the dispatcher's queue; return its key there."""
        key = str(next(self._keys))
        if _is_image(pending):
            self._update_fleet()
            self._waiting[key] = pending
            sample, segment = pending.args
            self._suspect_newest(sample, segment)
            self._dispatcher.add(key, sample, segment, pending.created_at)
            self._changed.set()  # its caller may have a place where others have none
        return key

    def request_left(self, key: str) -> None:
        """Remove the image from the dispatcher's queue, if it is still there."""
        self._dispatcher.remove(key)
        self._waiting.pop(key, None)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Wait for a place; return the replicas that have one for the next image.

        The best one comes first, and each is in a rank of its own, so that Serve asks them in turn.
        """
        self._assignment.set(None)
        if pending_request is None or not _is_image(pending_request):
            return [candidate_replicas]
        # If all of them refuse, Serve waits a little before it calls again.
        pending_request.routing_context.should_backoff = True
        # One task at a time: all ask for the same next place, and ranking takes time.
        async with self._choosing:
            while (assignment := self._next_assignment()) is None:
                if pending_request.future.done():
                    return [candidate_replicas]  # Serve sees that the request is done
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _RETRY_EVERY)
        self._assignment.set(assignment)
        replicas = self._replicas_by_id()
        return [[replicas[id]] for id in assignment.replicas[:_MAX_CANDIDATES]]

    def is_dispatching(self) -> bool:
        """Return whether the current task asks for an image."""
        return self._assignment.get() is not None

    def assign(self, replica: RunningReplica) -> tuple[RunningReplica, PendingRequest] | None:
        """Give the place to the next image, not necessarily the one whose task found it.

        Between the choice and the replica's consent other images may have been sent. If so, the
        image goes to the replica that is best now, or goes on waiting if no place is left.
        """
        assignment = self._assignment.get()
        if assignment is None:
            return None
        self._update_queue()
        dispatched = self._dispatcher.dispatch(assignment, replica.replica_id.unique_id)
        if dispatched is None:
            return None
        if dispatched.replica != replica.replica_id.unique_id:
            replica = self._replicas_by_id()[dispatched.replica]
        return replica, self._waiting[dispatched.image.key]

    def replica_did_not_respond(self, replica: RunningReplica) -> None:
        """Prefer other replicas, until this one sends a new report."""
        self._fleet.suspect([replica.replica_id.unique_id])
        logger.warning("replica %s takes no requests: it does not respond", replica.replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Set the replicas, and look for places again."""
        super().update_replicas(replicas)
        self._changed.set()

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Free the image's place when the replica's response has ended."""
        if _is_image(pending_request):
            sample, _ = pending_request.args
            end = partial(self._end, replica_id.unique_id, key_of(sample))
            loop = asyncio.get_running_loop()
            result.add_done_callback(lambda _: loop.call_soon_threadsafe(end))

    def _suspect_newest(self, sample: Sample[Any], segment: StageSegment) -> None:
        """Suspect the replica that fell silent with the image last, once for each such silence.

        It may have recovered when the image comes again, and so may those of before.
        """
        silence = sample.id, segment.avoid
        if segment.avoid and silence not in self._silences:
            self._silences.append(silence)
            self._fleet.suspect(segment.avoid[-1:])

    def _end(self, replica: str, key: str) -> None:
        self._fleet.end(replica, key)
        self._changed.set()

    def _next_assignment(self) -> Assignment | None:
        self._update_queue()
        return self._dispatcher.next_assignment()

    def _update_queue(self) -> None:
        self._update_fleet()
        for key, pending in self._waiting.items():
            if pending.future.done():  # its caller has gone
                self._dispatcher.remove(key)

    def _update_fleet(self) -> None:
        replicas, now = self._replicas_by_id(), time.monotonic()
        limits = [replica.max_ongoing_requests for replica in replicas.values()]
        self._fleet.set_replicas(replicas, max_images=min(limits, default=0))
        for id, replica in replicas.items():
            report = replica.routing_stats
            if not report or self._fleet.apply_report(id, report, now):
                continue
            if id not in self._unreadable:
                self._unreadable.add(id)
                version = report.get("version")
                logger.warning(
                    "ignoring reports of replica %s (version %r): not understood", id, version
                )
        for caller, seconds in self._fleet.take_charges().items():
            self._dispatcher.charge(caller, seconds)

    def _replicas_by_id(self) -> dict[str, RunningReplica]:
        return {id.unique_id: replica for id, replica in self.curr_replicas.items()}


def _is_image(pending: PendingRequest) -> bool:
    return len(pending.args) == 2 and isinstance(pending.args[0], Sample)
