"""Core's routing decision as Serve's router.

Knows no samples' insides: it hands them to the `Fleet`, with what replicas report through Serve
(`record_routing_stats`).
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.core.capacity.fleet import Fleet, key_of
from serve_app.core.diffusion.sample import Sample

logger = logging.getLogger("aura.routing")

REPORTS_EVERY = 0.5  # seconds
_LOOK = 0.25  # seconds after which who waits looks again for a place, told of one or not
_RANKED = 3  # replicas that are asked in turn, should the best one refuse


class OwedWorkRouter(RequestRouter):
    """Sends an image where it is done soonest and costs the others least, by what replicas owe.

    Serve's own router draws two replicas and asks which has fewer requests, of whatever length.
    An image waits here while every replica has enough for its next batches, and of those that wait
    the most urgent has the next place: the one that would be done first had it run alone from when
    it came.
    """

    def initialize_state(self, images: int = 1, **_: Any) -> None:
        """Nobody has anything. So many images step together, until replicas say it themselves."""
        self._fleet = Fleet(images)
        self._unread = set[str]()  # replicas whose reports are none
        self._change, self._looking = asyncio.Event(), asyncio.Lock()
        self._dues: WeakKeyDictionary[asyncio.Future[Any], float] = WeakKeyDictionary()
        self._sent = 0
        # What was sent when each of Serve's tasks chose: it asks the replica, and others choose.
        self._then: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Those with a place for the most urgent image, each in a rank of its own, the best first;
        as soon as there is one."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where those chosen refuse
        async with self._looking:  # one of Serve's tasks at a time: all look for the same place
            # Who waited for its turn has old candidates.
            while not (ranked := self._ranked(pending_request)):
                self._change.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._change.wait(), _LOOK)
                if pending_request is not None and pending_request.future.done():
                    return []
        if task := asyncio.current_task():
            self._then[task] = self._sent
        return [[replica] for replica in ranked[:_RANKED]]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These are the replicas there are; who waits looks again."""
        super().update_replicas(replicas)
        self._change.set()

    def _ranked(self, pending: PendingRequest | None) -> list[RunningReplica]:
        by_id = {id.unique_id: replica for id, replica in self.curr_replicas.items()}
        self._fleet.set_replicas(by_id)
        for id, replica in by_id.items():
            if replica.routing_stats:
                self._apply_report(id, replica.routing_stats)
        urgent = self._most_urgent() or pending
        if urgent is None or not _is_image(urgent):
            return list(by_id.values())
        sample, leg = urgent.args
        most = min((replica.max_ongoing_requests for replica in by_id.values()), default=0)
        return [by_id[id] for id in self._fleet.rank(sample, leg, most)]

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: Any = None
    ) -> None:
        """The replica has the most urgent image, whichever the place was looked for; or another
        one has it, where the place is taken by now.

        Serve's `FIFOMixin` gives it to the oldest in the same way.
        """
        pending, task = self._most_urgent(), asyncio.current_task()
        if pending is None:
            return
        if task and self._then.get(task) != self._sent:
            ranked = self._ranked(pending)
            if not ranked:
                return
            replica = ranked[0]
        self._sent += 1
        self._pending_requests_to_fulfill.remove(pending)
        self._cancel_routing_task_for_pending_request(pending)
        self._record_queue_wait_time(pending)
        if _is_image(pending):
            self._fleet.send(replica.replica_id.unique_id, *pending.args)
        pending.future.set_result(replica)
        self._remove_pending_request_from_indices(pending)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """The replica took the request; when it has ended, however, somebody else has its place."""
        if _is_image(pending_request):
            sample, _ = pending_request.args
            end = partial(self._end, replica_id.unique_id, key_of(sample))
            loop = asyncio.get_running_loop()
            result.add_done_callback(lambda _: loop.call_soon_threadsafe(end))

    def _end(self, replica: str, key: str) -> None:
        self._fleet.end(replica, key)
        self._change.set()

    def _apply_report(self, id: str, report: Mapping[str, Any]) -> None:
        """An error here would end Serve's task, and whoever it looked for would wait for ever."""
        try:
            self._fleet.apply_report(id, report)
        except (KeyError, TypeError, ValueError) as error:  # of another version of this service
            if id not in self._unread:
                logger.warning("replica %s reports what can't be read: %r", id, error)
            self._unread.add(id)

    def _most_urgent(self) -> PendingRequest | None:
        waiting = (one for one in self._pending_requests_to_fulfill if not one.future.done())
        return min(waiting, key=self._due, default=None)

    def _due(self, pending: PendingRequest) -> float:
        due = self._dues.get(pending.future)
        if due is None:
            alone = self._fleet.isolated_seconds(*pending.args) if _is_image(pending) else 0.0
            due = self._dues[pending.future] = pending.created_at + alone
        return due


def _is_image(pending: PendingRequest) -> bool:
    return len(pending.args) == 2 and isinstance(pending.args[0], Sample)
