"""`JobViews`: the events of a job that is at work, from whichever ingress process works at it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from serve_app.core.service.job_events import ImageProgress, JobDone, JobEvent
from serve_app.ingress.contracts import Ledger
from serve_app.ingress.job_feed import Cursor
from serve_app.ingress.job_runs import JobRuns

POLL_S = 5.0  # that one call of the process that works at a job waits for an event
_PAUSE_S = 0.1  # between two such calls, for each of which all processes are asked
_SEARCH_S = 0.5  # between two looks for a job that no process has just now
_TAKEOVER_S = 10.0  # in which somebody may take over a job whose process is gone


@dataclass(frozen=True, slots=True)
class JobView:
    """The events of a job after a cursor, and the next cursor."""

    cursor: Cursor
    events: Sequence[JobEvent]


# Asks all ingress processes for a job's events after a cursor, and waits some seconds for one.
# None if none works at the job.
ViewEverywhere = Callable[[str, Cursor, float], Awaitable[JobView | None]]


class JobViews:
    """What one process shows of the jobs at work, its own and those of the other processes."""

    def __init__(
        self,
        runs: JobRuns,
        ledger: Ledger,
        view_everywhere: ViewEverywhere | None = None,
        takeover_s: float = _TAKEOVER_S,
    ) -> None:
        self._takeover_s = takeover_s
        self._runs = runs
        self._ledger = ledger
        self._view_everywhere = view_everywhere or self.view

    async def view(self, id: str, cursor: Cursor, seconds: float) -> JobView | None:
        """Return the events of a job after a cursor; None if this process does not work at it.

        Waits some seconds for one, and whoever asks so is a viewer: there are previews. Without a
        wait there is progress alone, and no image.
        """
        feed = self._runs.feed(id)
        if feed is None:
            return None
        cursor, events = await feed.poll(cursor, seconds)
        if not seconds:
            events = [event for event in events if isinstance(event, ImageProgress)]
        return JobView(cursor, events)

    async def state(self, id: str) -> Sequence[JobEvent]:
        """Return how far the images are that are not made; none if nobody works at the job."""
        found = await self._view_everywhere(id, Cursor(), 0.0)
        return () if found is None else found.events

    async def events(self, id: str) -> AsyncGenerator[JobEvent, None]:
        """Stream a job's events while somebody works at it, from the present state on.

        Without `JobDone`: the ledger knows of the end, and is asked when no process has the job,
        which may be between two. A job that is lost is waited for, for as long as it takes another
        process to take it over.
        """
        if (feed := self._runs.feed(id)) is not None:
            async with aclosing(feed.read(views=True)) as events:
                async for event in events:
                    if not isinstance(event, JobDone):
                        yield event
            return
        cursor, lost_at, clock = Cursor(), None, asyncio.get_running_loop().time
        while True:
            found = await self._view_everywhere(id, cursor, POLL_S)
            if found is None:
                job = await self._ledger.get(id, 0)
                if job is None or job.has_ended:
                    return
                lost_at = (lost_at or clock()) if job.is_abandoned else None
                if lost_at is not None and clock() - lost_at > self._takeover_s:
                    return
                await asyncio.sleep(_SEARCH_S)
                continue
            cursor, lost_at = found.cursor, None
            for event in found.events:
                yield event
            await asyncio.sleep(_PAUSE_S)
