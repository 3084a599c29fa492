"""`VirtualQueue`: the jobs that were sent away, as if they waited, so that each has its own time.

Without it, all that are refused at one moment would come back at one moment, and be refused again.
A value without a clock: time is an argument, in seconds.
"""

from dataclasses import dataclass, field
from math import ceil

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts, drained, folded, served_before, total

MIN_RETRY_S, MAX_RETRY_S = 1, 3600  # the bounds of Retry-After; no deadline is further away
# The share of the service's rate at which those who were sent away are called back: less than all,
# so that a queue that is full when they are refused has room when they come.
_RATE = 0.9
# Seconds of the whole service that one caller may have booked, or as many as a job may wait. A
# client that tries again too early books again: without a bound it is sent away for ever longer.
MAX_BOOKED_S = 120.0
_MAX_TOTAL_S = MAX_RETRY_S * _RATE  # that all callers may have booked: nobody is sent away further
_MAX_CALLERS = 200  # that have booked by name; of more, those with the least are one caller


@dataclass(frozen=True, slots=True)
class VirtualQueue:
    """What the jobs that were refused and have not yet been called back would take, by caller.

    It drains at the service's rate, one second a second, like the queue that they did not enter.
    """

    booked: Amounts = field(default_factory=dict)  # seconds of the whole service
    at: float = 0.0  # when that was so

    def drain(self, now: float, others: Amounts) -> "VirtualQueue":
        """Return the queue at a later time; the rate is shared with what `others` booked."""
        own, all_booked = sum(self.booked.values()), sum(total(self.booked, others).values())
        share = own / all_booked if all_booked else 1.0
        return VirtualQueue(drained(self.booked, _RATE * share * (now - self.at)), now)

    def book(
        self,
        caller: Caller,
        seconds: float,
        fits_in: float,
        others: Amounts,
        queue_seconds: float = MAX_BOOKED_S,
    ) -> tuple["VirtualQueue", int]:
        """Book a refused job of `seconds`; return the queue, and the seconds to retry after.

        `fits_in` is when the job would fit if nobody else came. Those who were sent away before,
        from here or by `others`, come back before it. Beyond the bounds nothing is booked: such a
        job comes back with the last that was. `queue_seconds` are those that a job may wait.
        """
        booked = total(self.booked, others)
        earlier = booked.get(caller, 0.0)
        before = served_before(booked, caller, earlier, seconds)
        bound = max(MAX_BOOKED_S, queue_seconds)
        free = min(bound - earlier, _MAX_TOTAL_S - sum(booked.values()), seconds)
        amounts = self.booked
        if free > 0:
            mine = amounts.get(caller, 0.0) + free
            amounts = folded({**amounts, caller: mine}, _MAX_CALLERS)
        return VirtualQueue(amounts, self.at), bounded_retry(fits_in + before / _RATE)


def bounded_retry(seconds: float) -> int:
    """Return whole seconds for Retry-After, between 1 s and an hour."""
    return ceil(min(max(seconds, MIN_RETRY_S), MAX_RETRY_S))
