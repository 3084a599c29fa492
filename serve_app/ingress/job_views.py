"""`JobViews`: the events of a job that is at work, from whichever ingress process works at it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from serve_app.core.service.job_events import ImagePreview, ImageProgress, JobDone, JobEvent
from serve_app.ingress.contracts import Ledger
from serve_app.ingress.job_feed import Cursor
from serve_app.ingress.job_runs import JobRuns

POLL_S = 5.0  # that one call of the process that works at a job waits for an event
_PAUSE_S = 0.1  # between two such calls, for each of which all processes are asked
_SEARCH_S = 0.5  # between two looks for a job that no process has just now
_TAKEOVER_S = 10.0  # in which somebody may take over a job whose process is gone


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """Which events of a job a process is asked for: those after a cursor, of some types.

    Progress always; whoever `watches` is a viewer, so that there are previews. The images
    themselves are megabytes, so they are sent only to those who `follow` the job to its end, and
    wait `seconds` for an event.
    """

    cursor: Cursor = field(default_factory=Cursor)
    seconds: float = 0.0
    watches: bool = False
    follows: bool = False

    def shows(self, event: JobEvent) -> bool:
        """Return whether an event is sent."""
        is_shown = isinstance(event, ImageProgress)
        return self.follows or is_shown or (self.watches and isinstance(event, ImagePreview))


@dataclass(frozen=True, slots=True)
class JobView:
    """The events of a job after a cursor, and the next cursor."""

    cursor: Cursor
    events: Sequence[JobEvent]


# Asks all ingress processes for a job's events. None if none works at the job.
ViewEverywhere = Callable[[str, ViewRequest], Awaitable[JobView | None]]


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

    async def view(self, id: str, wanted: ViewRequest) -> JobView | None:
        """Return the events of a job that are wanted; None if this process has no such job."""
        feed = self._runs.feed(id)
        if feed is None:
            return None
        cursor, events = await feed.poll(wanted.cursor, wanted.seconds, watches=wanted.watches)
        return JobView(cursor, [event for event in events if wanted.shows(event)])

    async def state(self, id: str) -> Sequence[JobEvent]:
        """Return how far the images are that are not made; none if nobody works at the job."""
        return await self.glance(id, watches=False)

    async def glance(self, id: str, *, watches: bool) -> Sequence[JobEvent]:
        """Return the same, with the newest previews if the caller `watches`.

        It is believed to watch for some seconds more.
        """
        found = await self._view_everywhere(id, ViewRequest(watches=watches))
        return () if found is None else found.events

    async def events(self, id: str, *, watches: bool = True) -> AsyncGenerator[JobEvent, None]:
        """Stream a job's events while somebody works at it, from the present state on.

        Without previews and images if the caller does not watch. Without `JobDone`: the ledger
        knows of the end, and is asked when no process has the job, which may be between two. A job
        that is lost is waited for, for as long as it takes another
        process to take it over.
        """
        if (feed := self._runs.feed(id)) is not None:
            async with aclosing(feed.read(views=watches, follows=True)) as events:
                async for event in events:
                    if not isinstance(event, JobDone):
                        yield event
            return
        cursor, lost_at, clock = Cursor(), None, asyncio.get_running_loop().time
        while True:
            wanted = ViewRequest(cursor, POLL_S, watches=watches, follows=watches)
            found = await self._view_everywhere(id, wanted)
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
