"""`JobSpool`: the spool as the job service uses it, with all work on files in a thread."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from serve_app.core.errors import InvalidRequest, LedgerAway
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.jobs import IdempotencyClaim
from serve_app.core.service.tasks import ImageSnapshot, gravest
from serve_app.ingress.generation_job import GenerationJob, RerunFormat
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.origin import origin_digest
from serve_app.ingress.spooled_request import read_request, write_request
from serve_app.spool.folder import SpoolFile, SpoolFolder, SpoolFull
from serve_app.spool.spooled_job import SpooledJob

logger = logging.getLogger("aura.spool")

SPOOL_S = 6.0  # seconds in which a stop writes what it can
_POLL_S = 1.0  # between two looks for jobs that another process has left
_IDLE_POLL_S = 10.0  # where the last look found none
_TAKE_S = 1.0  # that a file may be with a process that only looks whether it is to work at it
_TAKE_PAUSE_S = 0.05
_MAX_JOBS = 64  # that one process takes up at the same time
_THREADS = 4

T = TypeVar("T")
Snapshots = Callable[[str], ImageSnapshot | None]  # of an image, by its id


@dataclass(frozen=True, slots=True, eq=False)
class TakenJob:
    """A job of the spool that this process alone may work at."""

    file: SpoolFile
    generation: GenerationJob
    images: tuple[ImageSnapshot | None, ...]  # none of another origin


class JobSpool:
    """The spooled jobs of one folder, for the service that `info` describes.

    `formats` are those of the doors' routes. An empty folder is looked at every `idle_poll_s`.
    """

    def __init__(
        self,
        folder: SpoolFolder,
        formats: Mapping[str, RerunFormat],
        info: ServiceInfo,
        idle_poll_s: float = _IDLE_POLL_S,
    ) -> None:
        self._folder = folder
        self._formats = formats
        self._info = info
        self._idle_poll_s = idle_poll_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._given_up: set[str] = set()  # ids of jobs that failed here in no foreseen way

    async def save(
        self, runs: Sequence[JobRun], snapshot: Snapshots, seconds: float = SPOOL_S
    ) -> frozenset[str]:
        """Write what can be written of these jobs in some seconds; return their ids.

        `snapshot` returns how far an image is. The log says why a job is not kept.
        """
        writes = {}
        for run in runs:
            if run.claim is not None:  # else nobody could ask for it
                images = tuple(_furthest(snapshot(task.id), task.resume) for task in run.tasks)
                writing = self._call(self._write, run, run.claim, images)
                writes[run.job.id] = asyncio.ensure_future(writing)
        if writes:
            await asyncio.wait(writes.values(), timeout=seconds)
        kept = {id: write.result() for id, write in writes.items() if write.done()}
        if late := [write for write in writes.values() if not write.done()]:
            logger.warning("%d jobs were not written to the spool in time", len(late))
        for write in late:
            write.cancel()
        dropped = {id for made_room in kept.values() if made_room for id in made_room}
        return frozenset(id for id, made_room in kept.items() if made_room is not None) - dropped

    async def take(self, id: str) -> TakenJob | None:
        """Return a job to work at, for whom the ledger says that nobody else does; None without."""
        end = asyncio.get_running_loop().time() + _TAKE_S
        while (taken := await self._take(id)) is None:
            if asyncio.get_running_loop().time() > end or not await self._call(
                self._folder.holds, id
            ):
                return None
            await asyncio.sleep(_TAKE_PAUSE_S)
        return taken

    async def finish_all(
        self,
        finish: Callable[[TakenJob], Awaitable[None]],
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        """Call `finish` for each job that no other process has, for as long as the service runs.

        It returns when the job has ended, or when somebody else works at it: then it is looked at
        again. A process that retires leaves its jobs while this one runs.
        """
        while True:
            is_left = await self._start_more(finish, is_ready)
            await asyncio.sleep(_POLL_S if is_left else self._idle_poll_s)

    async def drop(self, ids: Collection[str]) -> None:
        """Delete what is kept of jobs that have ended."""
        for id in ids:
            file = await self._call(self._folder.take, id)
            if file is not None:
                file.delete()

    async def _start_more(
        self,
        finish: Callable[[TakenJob], Awaitable[None]],
        is_ready: Callable[[], Awaitable[bool]],
    ) -> bool:
        """Start what may be started; return whether something is left."""
        try:
            ids = await self._call(self._folder.ids)
            if ids and await is_ready():
                for id in ids:
                    if len(self._running) < _MAX_JOBS and id not in self._running:
                        self._start(id, finish)
        except Exception as error:  # such as a disk's, which may pass
            logger.warning("the spool can't be read: %s", error)
            return True
        return bool(ids)

    def _start(self, id: str, finish: Callable[[TakenJob], Awaitable[None]]) -> None:
        if id not in self._given_up:
            self._running[id] = asyncio.create_task(self._finish(id, finish), context=Context())
            self._running[id].add_done_callback(lambda _: self._running.pop(id))

    async def _finish(self, id: str, finish: Callable[[TakenJob], Awaitable[None]]) -> None:
        taken = await self._take(id)
        if taken is None:
            return
        try:
            await finish(taken)
        except LedgerAway as error:
            logger.warning("job %s waits in the spool: %s", id, error)
        except Exception:
            self._given_up.add(id)
            logger.exception("job %s of the spool could not be finished", id)
        finally:
            taken.file.release()

    async def _take(self, id: str) -> TakenJob | None:
        try:
            file = await self._call(self._folder.take, id)
        except OSError as error:
            logger.warning("the spool can't be read: %s", error)
            return None
        if file is None:
            return None
        try:
            generation = read_request(file.job.request, file.job.inputs, self._formats)
        except (ValueError, KeyError, TypeError, InvalidRequest):
            problem = "holds a request that this version does not understand"
            await self._call(self._folder.refuse, file, problem)
            return None
        images = file.job.images
        if file.job.origin != origin_digest(self._info, generation):
            logger.warning("job %s of the spool begins anew: its model or the version changed", id)
            images = (None,) * len(images)
        return TakenJob(file, generation, images)

    def _write(
        self, run: JobRun, claim: IdempotencyClaim, images: tuple[ImageSnapshot | None, ...]
    ) -> tuple[str, ...] | None:
        """Write a job; return the ids of those that made room for it, None if it is not kept."""
        try:
            job = SpooledJob(
                run.job.id,
                run.job.caller,
                run.generation.rerun.route,
                run.job.created,
                claim,
                origin_digest(self._info, run.generation),
                write_request(run.generation),
                tuple(image.inputs for image in run.generation.images),
                images,
            )
            return self._folder.write(job)
        except (SpoolFull, OSError) as error:
            logger.warning("job %s is not kept in the spool: %s", run.job.id, error)
        except Exception:  # of one job, which must not keep the others from being written
            logger.exception("job %s is not kept in the spool", run.job.id)
        return None

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *arguments))


def _furthest(*snapshots: ImageSnapshot | None) -> ImageSnapshot | None:
    """Return the snapshot of most steps, of those that have taken one or are suspected."""
    known = [
        found
        for found in snapshots
        if found is not None
        and (found.sample.index > found.sample.schedule.start_index or found.suspicion.deaths)
    ]
    furthest = max(known, key=lambda found: found.steps_done, default=None)
    return furthest and replace(furthest, suspicion=gravest(known))
