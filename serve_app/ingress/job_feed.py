"""`JobFeed`: the events of one job, from where it runs to one reader in the same process."""

import asyncio
from collections.abc import AsyncGenerator

from serve_app.core.service.events import JobEvent, JobImageEvent

_Slot = tuple[int | None, type]  # number of the image, if the event is of one, and what it is


class JobFeed:
    """Holds events until the reader takes them; never more than one of each type for each image.

    A reader slower than the job gets the newest of each, so that memory is bounded.
    """

    def __init__(self) -> None:
        self._events: dict[_Slot, JobEvent] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, event: JobEvent) -> None:
        """Add an event in place of an earlier one of its type; nothing after `close`."""
        if not self._closed:
            slot = _slot(event)
            self._events.pop(slot, None)  # the newest goes to the end of the queue
            self._events[slot] = event
            self._changed.set()

    def close(self) -> None:
        """End the feed; the reader still gets what is in it."""
        self._closed = True
        self._changed.set()

    async def read(self) -> AsyncGenerator[JobEvent, None]:
        """Yield the events until the feed is closed, which the end of the reading does as well."""
        try:
            while self._events or not self._closed:
                while self._events:
                    yield self._events.pop(next(iter(self._events)))
                await self._changed.wait()
                self._changed.clear()
        finally:
            self.close()
            self._events.clear()


def _slot(event: JobEvent) -> _Slot:
    if isinstance(event, JobImageEvent):
        return event.number, type(event.event)
    return None, type(event)
