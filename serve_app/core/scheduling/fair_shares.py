"""`FairShares`: which caller is served next, so that callers share a resource by their weights.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): every caller has a virtual
time, which grows by the seconds that it was served, divided by its weight. The caller with the
least virtual time is served next. Two callers that both always have work are never further apart
than the longest single services of the two. No clock, and nothing is queued here.
"""

from collections.abc import Collection

from serve_app.core.caller import Caller


class FairShares:
    """The virtual times of callers. Whoever serves them is the only writer.

    A caller that comes back begins at the present virtual time: what it left unused is not saved up
    for it. What is kept of a caller without work is dropped as soon as it makes no difference.
    """

    def __init__(self) -> None:
        self._times: dict[str, float] = {}  # by name
        self._work: dict[str, int] = {}  # the number of pieces of each caller that has any
        self._now = 0.0  # where a newcomer begins; never goes back

    def __len__(self) -> int:
        """Return the number of callers of whom anything is kept."""
        return len(self._times)

    def enter(self, caller: Caller) -> None:
        """Count one more piece of the caller's work."""
        if caller.name not in self._work:
            self._forget_passed()
            self._times[caller.name] = max(self._now, self._times.get(caller.name, self._now))
        self._work[caller.name] = self._work.get(caller.name, 0) + 1

    def leave(self, caller: Caller) -> None:
        """Count one piece less, whether it was served or not."""
        self._work[caller.name] -= 1
        if not self._work[caller.name]:
            del self._work[caller.name]
            if not self._work:  # idle: whoever comes next owes nobody anything
                self._now = max(self._now, *self._times.values())
            self._forget_passed()

    def time(self, caller: Caller) -> float:
        """Return the caller's virtual time: the least is served next."""
        return self._times.get(caller.name, self._now)

    def serve(self, served: Collection[tuple[Caller, float]]) -> None:
        """Charge the callers that are served together, each with its seconds."""
        self._now = max(self._now, min(self.time(caller) for caller, _ in served))
        for caller, seconds in served:
            self.correct(caller, seconds)

    def correct(self, caller: Caller, seconds: float) -> None:
        """Charge the caller for more than it was served for, or for less if negative.

        What is taken back never brings it before the present virtual time: that would be credit.
        """
        time = self._times.get(caller.name)
        if time is not None:
            corrected = time + seconds / caller.weight
            self._times[caller.name] = max(corrected, min(time, self._now))

    def raise_to(self, caller: Caller, time: float) -> None:
        """Let the caller's virtual time be at least `time`."""
        if caller.name in self._times:
            self._times[caller.name] = max(time, self._times[caller.name])

    def _forget_passed(self) -> None:
        """Drop the callers without work who would begin at the present virtual time anyway."""
        for name in [name for name in self._times if name not in self._work]:
            if self._times[name] <= self._now:
                del self._times[name]
