"""`Deadline`: the time by which one image must be ready.

No Ray and no stages. Time is the event loop's.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from serve_app.core.errors import DeadlineExceeded

E = TypeVar("E")


class Deadline:
    """A time limit on a stream of events, which may be put off while the stream runs.

    The limit covers the waits for the next event alone, never what a consumer does between two
    events: a timeout that spans a `yield` would cancel the consumer's own code (PEP 789).
    """

    def __init__(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()
        self._expires = self._started + seconds
        self._limit: asyncio.Timeout | None = None

    def extend(self, seconds: float) -> None:
        """Allow `seconds` from now on, also for the wait that is going on."""
        self._expires = self._clock() + seconds
        if self._limit is not None:
            self._limit.reschedule(self._expires)

    async def enforce(self, events: AsyncGenerator[E, None]) -> AsyncGenerator[E, None]:
        """Pass the events on, and close their stream at the end.

        Raises `DeadlineExceeded` when the next event does not come in time.
        """
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout_at(self._expires) as self._limit:
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    allowed = self._expires - self._started
                    raise DeadlineExceeded(
                        f"the image was not ready within {allowed:.0f} s"
                    ) from None
                finally:
                    self._limit = None
                yield event
