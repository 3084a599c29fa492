"""`watch_silence`: a stream of events that ends by an error when its sender falls silent.

No Ray and no stages. Time is the event loop's.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from serve_app.core.replica_errors import ReplicaSilent

E = TypeVar("E")

_TICK = 1.0  # seconds


async def watch_silence(events: AsyncGenerator[E, None], seconds: float) -> AsyncGenerator[E, None]:
    """Pass the events on, and close their stream at the end.

    Raises `ReplicaSilent` when no event comes for `seconds` after the first one, before which a
    sample may wait for a replica. Only the waits for an event count, and only time in which this
    event loop runs: a process that was held up has not listened.
    """
    async with aclosing(events):
        watching = False
        while True:
            try:
                async with asyncio.timeout(None) as timer:
                    ticks = _Ticks(timer, seconds if watching else None)
                    try:
                        event = await anext(events)
                    finally:
                        ticks.stop()
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise ReplicaSilent(f"no news from the replica for {seconds:.0f} s") from None
            watching = True
            yield event


class _Ticks:
    """Lets a timer expire after some seconds, counted one by one."""

    def __init__(self, timer: asyncio.Timeout, seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = timer
        self._next = None if seconds is None else self._schedule(seconds)

    def stop(self) -> None:
        """Let the timer be."""
        if self._next is not None:
            self._next.cancel()

    def _schedule(self, left: float) -> asyncio.TimerHandle:
        return self._loop.call_later(min(left, _TICK), self._tick, left - _TICK)

    def _tick(self, left: float) -> None:
        if left > 0:
            self._next = self._schedule(left)
        else:
            self._timer.reschedule(self._loop.time())
