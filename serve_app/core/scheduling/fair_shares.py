"""`FairShares`: which caller is served next, so that callers share a resource by their weights.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with the virtual time of WF2Q+
(Bennett and Zhang, IEEE/ACM Transactions on Networking 5(5), 1997). Every caller has a virtual
time, which grows by the seconds that it was served, divided by its weight. The caller with the
least virtual time is served next. Two callers that both always have work are never further apart
than the longest single services of the two. No clock, and nothing is queued here.

A newcomer begins at the present virtual time. That is no earlier than the start of the latest
service, and it grows with service too: by a service's seconds, divided by the weights of all
callers with work. So ever-new callers, none of whom comes twice, soon begin behind one who waits.
While the present is ahead of all callers with work by a service, it does not grow: who was behind
long ago, or was predicted too much, holds no newcomer up.
"""

import heapq
from collections.abc import Collection
from dataclasses import dataclass

from serve_app.core.caller import Caller


@dataclass(slots=True)
class _Share:
    """What is kept of one caller."""

    time: float  # the caller's virtual time
    came_at: float  # the present virtual time when it last came with work
    weight: float
    work: int = 0  # pieces
    predicted: float = 0.0  # seconds that it was charged with when served, and may get back


class FairShares:
    """The virtual times of callers. Whoever serves them is the only writer.

    A caller that comes back begins at the present virtual time: what it left unused is not saved up
    for it. What is kept of a caller without work is dropped as soon as it makes no difference.
    """

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}  # by name
        self._busy: dict[str, _Share] = {}  # those with work
        self._weights = 0.0  # of these
        self._idle: list[tuple[float, str]] = []  # a heap of times that callers without work had
        self._now = 0.0  # where a newcomer begins; never goes back
        # By how much the service since the latest update lets the present grow; what was charged
        # too much and taken back later may leave it negative.
        self._passed = 0.0
        self._service = 0.0  # the virtual time that the latest service took

    def __len__(self) -> int:
        """Return the number of callers of whom anything is kept."""
        return len(self._shares)

    def enter(self, caller: Caller) -> None:
        """Count one more piece of the caller's work."""
        share = self._busy.get(caller.name)
        if share is None:
            self._forget_passed()
            share = self._shares.setdefault(caller.name, _Share(self._now, self._now, 1.0))
            share.time, share.came_at = max(self._now, share.time), self._now
            share.weight = caller.weight
            self._busy[caller.name] = share
            self._weights += share.weight
        share.work += 1

    def leave(self, caller: Caller) -> None:
        """Count one piece less, whether it was served or not."""
        share = self._busy[caller.name]
        share.work -= 1
        if share.work:
            return
        del self._busy[caller.name]
        self._weights -= share.weight
        heapq.heappush(self._idle, (share.time, caller.name))
        if self._busy:
            self._forget_passed()
        else:  # idle: whoever comes next owes nobody anything
            self._now = max(self._now, *(share.time for share in self._shares.values()))
            self._shares.clear()
            self._idle.clear()
            self._weights = self._passed = 0.0

    def time(self, caller: Caller) -> float:
        """Return the caller's virtual time: the least is served next."""
        share = self._shares.get(caller.name)
        return self._now if share is None else share.time

    def serve(self, served: Collection[tuple[Caller, float]]) -> None:
        """Charge the callers that are served together, each with its seconds."""
        if self._passed > 0 and self._busy:
            latest = max(share.time for share in self._busy.values()) + self._service
            self._now = max(self._now, min(self._now + self._passed, latest))
            self._passed = 0.0
        self._now = max(self._now, min(self.time(caller) for caller, _ in served))
        for caller, seconds in served:
            self.correct(caller, seconds)
            if share := self._shares.get(caller.name):
                share.predicted += seconds
        self._service = max(seconds / caller.weight for caller, seconds in served)

    def correct(self, caller: Caller, seconds: float) -> None:
        """Charge the caller for more than it was served for, or for less if negative.

        It gets back no more than it was charged with by `serve`, and nothing that brings it before
        the virtual time at which it came: that would be credit. It may be behind the present, where
        callers had places that it had not, so the present is no bound.
        """
        share = self._shares.get(caller.name)
        if share is None:
            return
        before = share.time
        if seconds < 0:
            seconds = max(seconds, -share.predicted)
            share.predicted += seconds
        share.time = max(before + seconds / caller.weight, min(before, share.came_at))
        self._passed += (share.time - before) * caller.weight / self._weights
        if not share.work:
            heapq.heappush(self._idle, (share.time, caller.name))

    def raise_to(self, caller: Caller, time: float) -> None:
        """Let the caller's virtual time be at least `time`."""
        if share := self._busy.get(caller.name):
            share.time = max(time, share.time)

    def _forget_passed(self) -> None:
        """Drop the callers without work who would begin at the present virtual time anyway."""
        while self._idle and self._idle[0][0] <= self._now:
            _, name = heapq.heappop(self._idle)
            share = self._shares.get(name)
            if share and not share.work and share.time <= self._now:
                del self._shares[name]
