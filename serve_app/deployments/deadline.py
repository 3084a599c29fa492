"""`Deadline`: the time by which one image must be ready.

No Ray and no stages. Time is the event loop's.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self, TypeVar

from serve_app.core.capacity.admission import latest_start
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.service.tasks import ImageTask

E = TypeVar("E")


class Deadline:
    """A time limit on a stream of events, which may be put off while the stream runs.

    The limit covers the waits for the next event alone, never what a consumer does between two
    events: a timeout that spans a `yield` would cancel the consumer's own code (PEP 789).
    """

    def __init__(self, expires: float, *, allowed: float, is_chosen: bool) -> None:
        """Set a limit of `allowed` seconds in all, until the event loop's time `expires`.

        One that the caller has chosen is never put off.
        """
        self._clock = asyncio.get_running_loop().time
        self._expires = expires
        self._started = expires - allowed
        self._is_chosen = is_chosen
        self._latest_start: float | None = None
        self._limit: asyncio.Timeout | None = None

    @classmethod
    def of(cls, task: ImageTask, default: float) -> Self:
        """Return the deadline that a task's caller chose, else `default` seconds from now."""
        now = asyncio.get_running_loop().time()
        chosen, allowed = task.deadline(now), task.timeout_s
        if chosen is not None and allowed is not None:
            return cls(chosen, allowed=allowed, is_chosen=True)
        return cls(now + default, allowed=default, is_chosen=False)

    def extend(self, seconds: float) -> None:
        """Allow `seconds` from now on, also for the wait that is going on, unless chosen."""
        if not self._is_chosen:
            self._expires = self._clock() + seconds
            self._reschedule()

    def begin_wait(self, seconds_left: float) -> None:
        """Take note that the image waits, and still needs so much time once it has its turn.

        The stream ends as soon as the image can't be in time any more, if its caller chose how
        long it may take.
        """
        if self._is_chosen:
            self._latest_start = latest_start(self._expires, seconds_left)
            self._reschedule()

    def end_wait(self) -> None:
        """Take note that the image has its turn."""
        if self._latest_start is not None:
            self._latest_start = None
            self._reschedule()

    async def enforce(self, events: AsyncGenerator[E, None]) -> AsyncGenerator[E, None]:
        """Pass the events on, and close their stream at the end.

        Raises `DeadlineExceeded` when the next event does not come in time.
        """
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout_at(self._ends) as self._limit:
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise self._error() from None
                finally:
                    self._limit = None
                yield event

    @property
    def _ends(self) -> float:
        return self._expires if self._latest_start is None else self._latest_start

    def _reschedule(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(self._ends)

    def _error(self) -> DeadlineExceeded:
        allowed = f"within {self._expires - self._started:.0f} s"
        if self._latest_start is None:
            return DeadlineExceeded(f"the image was not ready {allowed}")
        return DeadlineExceeded(f"the image still waits and can't be ready {allowed} any more")
