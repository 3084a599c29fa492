"""`JobFeed`: the present state of one job as events, for any number of readers at any time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobDone,
    JobEvent,
    JobStarted,
)

REFRESH_S = 1.0  # after so long without an event a viewer gets the progress as it is by now
_LINGER_S = 3.0  # that a viewer in another process is believed to go on watching


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader is: by default at the beginning."""

    feed: str = ""  # the id of the feed
    count: int = 0  # of events, by which the feed numbers them


_Slot = tuple[int | None, type]  # number of the image, if the event is of one, and what it is


class JobFeed:
    """Keeps the newest event of each type for each image, so that memory is bounded.

    A reader begins with what is kept, and then gets what comes; one slower than the job gets the
    newest of each. Some readers are *viewers*, whom `connect` lets whoever makes the job know of.
    """

    def __init__(self, refresh_s: float = REFRESH_S) -> None:
        self._refresh_s = refresh_s
        self._on_watch: Callable[[bool], None] = _tell_nobody
        self._refresh: Callable[[], None] = _refresh_nothing
        self._events: dict[_Slot, tuple[int, JobEvent]] = {}  # each with its number, ascending
        self._id, self._count = uuid4().hex, 0
        self._waiting: set[asyncio.Event] = set()
        self._viewers = 0
        self._absences: set[asyncio.TimerHandle] = set()  # of viewers who wait no more
        self._closed = False

    @property
    def is_viewed(self) -> bool:
        """Whether there are viewers."""
        return self._viewers > 0

    def connect(self, on_watch: Callable[[bool], None], refresh: Callable[[], None]) -> None:
        """Call `on_watch` with True while there are viewers, and with False when the last one left.

        `refresh` is called when a viewer comes, and each second while one waits: it puts what has
        changed without an event.
        """
        self._on_watch, self._refresh = on_watch, refresh
        if self._viewers:
            on_watch(True)
            refresh()

    def put(self, event: JobEvent) -> None:
        """Add an event in place of an earlier one of its type; nothing after `close`.

        An event that is equal to that one is no news.
        """
        slot = _slot(event)
        if self._closed or (slot in self._events and self._events[slot][1] == event):
            return
        self._events.pop(slot, None)  # the newest is the last
        if isinstance(event, ImageMade):  # nothing more is to be known of how far it is
            for kind in (ImageProgress, ImagePreview):
                self._events.pop((event.number, kind), None)
        self._count += 1
        self._events[slot] = self._count, event
        self._wake()

    def close(self) -> None:
        """End the feed; readers still get what is in it.

        Whoever made the job may hold the feed, so that only a search for rings would free both, and
        the images: it is let go.
        """
        self._closed = True
        self._on_watch, self._refresh = _tell_nobody, _refresh_nothing
        for absence in self._absences:
            absence.cancel()
        self._wake()

    async def read(
        self, *, views: bool = False, follows: bool = False
    ) -> AsyncGenerator[JobEvent, None]:
        """Yield the events until the feed is closed; as a viewer, if the reader `views` them.

        Who `follows` gets the progress each second as a viewer does, and no previews are made.
        """
        cursor = 0
        if views:
            self._begin_view()
        if views or follows:
            self._refresh()
        try:
            while True:
                while newer := self._after(cursor):
                    cursor, event = newer[0]
                    yield event
                if self._closed:
                    return
                await self._wait(cursor, refreshes=views or follows)
        finally:
            if views:
                self._end_view()

    async def poll(
        self, at: Cursor, seconds: float, *, watches: bool = False
    ) -> tuple[Cursor, list[JobEvent]]:
        """Return the events after a cursor, and the next cursor; wait for one, at most so long.

        A cursor of another feed is none. Whoever `watches` is a viewer, and is believed to stay for
        some seconds more.
        """
        cursor = at.count if at.feed == self._id else 0
        if watches:
            self._begin_view()
            if not cursor:
                self._refresh()
            self._end_view_in(seconds + _LINGER_S)
        if seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wait(cursor, refreshes=True)
        found = self._after(cursor)
        last = found[-1][0] if found else cursor
        return Cursor(self._id, last), [event for _, event in found]

    def _after(self, cursor: int) -> list[tuple[int, JobEvent]]:
        """Return the events with a number greater than the cursor, in their order."""
        return [entry for entry in self._events.values() if entry[0] > cursor]

    async def _wait(self, cursor: int, *, refreshes: bool) -> None:
        """Return when there is an event after the cursor, or the feed is closed."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while not self._closed and self._count <= cursor:
                try:
                    async with asyncio.timeout(self._refresh_s if refreshes else None):
                        await changed.wait()
                except TimeoutError:
                    self._refresh()
        finally:
            self._waiting.discard(changed)

    def _wake(self) -> None:
        for changed in self._waiting:
            changed.set()

    def _begin_view(self) -> None:
        self._viewers += 1
        if self._viewers == 1:
            self._on_watch(True)

    def _end_view_in(self, seconds: float) -> None:
        """Believe a viewer to be there for so long, at most until the feed is closed."""

        def end() -> None:
            self._absences.discard(absence)
            self._end_view()

        if not self._closed:
            absence = asyncio.get_running_loop().call_later(seconds, end)
            self._absences.add(absence)

    def _end_view(self) -> None:
        self._viewers -= 1
        if not self._viewers and not self._closed:
            self._on_watch(False)


def _tell_nobody(watched: bool) -> None:
    """Do nothing: no maker is connected."""


def _refresh_nothing() -> None:
    """Do the same."""


def _slot(event: JobEvent) -> _Slot:
    number = None if isinstance(event, JobStarted | JobDone) else event.number
    return number, type(event)
