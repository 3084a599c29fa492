"""`JobSpool`: the spool as the job service uses it, with all work on files in a thread."""

import asyncio
import logging
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from serve_app.core.errors import InvalidRequest, LedgerAway
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.jobs import IdempotencyClaim
from serve_app.core.service.tasks import ImageSnapshot, gravest
from serve_app.ingress.cloud_generation import with_current_model
from serve_app.ingress.generation_job import GenerationJob, RerunFormat
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.origin import origin_digest
from serve_app.ingress.spooled_request import read_request, write_request
from serve_app.spool.folder import SpoolFolder, SpoolFull
from serve_app.spool.own_files import OwnFiles
from serve_app.spool.spool_file import SpoolFile
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
Finish = Callable[["TakenJob"], Awaitable[None]]
IsReady = Callable[[], Awaitable[bool]]
Snapshots = Callable[[str], ImageSnapshot | None]  # of an image, by its id


@dataclass(frozen=True, slots=True, eq=False)
class TakenJob:
    """A job of the spool that this process alone may work at."""

    file: SpoolFile
    job: SpooledJob
    generation: GenerationJob
    images: tuple[ImageSnapshot | None, ...]  # none of another origin


@dataclass(frozen=True, slots=True)
class _Written:
    """Whether a job is in the spool, and the ids of those that made room for it."""

    is_kept: bool
    dropped: tuple[str, ...] = ()


class JobSpool:
    """The spooled jobs of one folder, for the service that `info` describes.

    A file whose job this process works at stays locked, so that no other process looks into it.
    `formats` are those of the doors' routes. A folder with files is looked at every `poll_s`, and
    an empty one every `idle_poll_s`.
    """

    def __init__(
        self,
        folder: SpoolFolder,
        formats: Mapping[str, RerunFormat],
        info: ServiceInfo,
        poll_s: float = _POLL_S,
        idle_poll_s: float = _IDLE_POLL_S,
    ) -> None:
        self._folder = folder
        self._files = OwnFiles(folder)
        self._formats = formats
        self._info = info
        self._poll_s = poll_s
        self._idle_poll_s = idle_poll_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self._saving: set[Future[_Written]] = set()  # copies of jobs that go on
        self._running: dict[str, asyncio.Task[None]] = {}
        self._given_up: set[str] = set()  # ids of jobs that failed here in no foreseen way

    async def save(self, runs: Sequence[JobRun], snapshot: Snapshots) -> None:
        """Write copies of jobs that go on; none of another job makes room for them.

        `snapshot` returns how far an image is. Those that are no further than their files are left
        out. The log says why a job is not kept.
        """
        saving = self._write_all(runs, snapshot, makes_room=False).values()
        self._saving.update(saving)
        try:
            if saving:
                await asyncio.wait([asyncio.wrap_future(write) for write in saving])
        finally:
            self._saving.difference_update(saving)

    async def keep(
        self, runs: Sequence[JobRun], snapshot: Snapshots, seconds: float = SPOOL_S
    ) -> frozenset[str]:
        """Write what can be written of jobs that end here, in some seconds; return their ids.

        The oldest files make room for them.
        """
        for write in self._saving:  # older than what is written now
            write.cancel()
        writes = self._write_all(runs, snapshot, makes_room=True)
        if writes:
            waits = [asyncio.wrap_future(write) for write in writes.values()]
            await asyncio.wait(waits, timeout=seconds)
        done = {id: write.result() for id, write in writes.items() if write.done()}
        if late := [write for id, write in writes.items() if id not in done]:
            logger.warning("%d jobs were not written to the spool in time", len(late))
        for write in late:
            write.cancel()
        dropped = {id for written in done.values() for id in written.dropped}
        return frozenset(id for id, written in done.items() if written.is_kept) - dropped

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

    async def finish_all(self, finish: Finish, is_ready: IsReady) -> None:
        """Call `finish` for each job that no other process has, for as long as the service runs.

        It returns when the job has ended, or when somebody else works at it: then it is looked at
        again. A process that retires leaves its jobs while this one runs.
        """
        while True:
            is_left = await self._start_more(finish, is_ready)
            await asyncio.sleep(self._poll_s if is_left else self._idle_poll_s)

    async def settle(
        self, ids: frozenset[str], has_ended: Callable[[str], Awaitable[bool]]
    ) -> None:
        """Give up the files of jobs at which this process works no more.

        Those of jobs that have ended are deleted. The others are left to whoever takes them up, who
        asks again.
        """
        for id in ids & self._files.ids:
            with suppress(LedgerAway):
                if await has_ended(id):
                    await self._call(self._files.delete, id)
            self._files.release(id)

    def release(self, id: str) -> None:
        """Leave what this process has of a job to whoever takes it up."""
        self._files.release(id)

    async def _start_more(self, finish: Finish, is_ready: IsReady) -> bool:
        """Start what may be started; return whether something is left.

        It waits while too many are at work, so that the oldest files hide no others.
        """
        try:
            ids = await self._call(self._folder.ids)
            others = [id for id in ids if not self._has(id)]
            may_start = bool(others) and await is_ready()
            for id in others:
                if len(self._running) >= _MAX_JOBS:
                    await asyncio.wait(self._running.values(), return_when=FIRST_COMPLETED)
                    may_start = await is_ready()
                if may_start and not self._has(id):
                    self._start(id, finish)
        except Exception as error:  # such as a disk's, which may pass
            logger.warning("the spool can't be read: %s", error)
            return True
        return bool(ids)

    def _has(self, id: str) -> bool:
        """Return whether this process works at a job of the spool, or will never do."""
        return id in self._running or id in self._given_up or id in self._files.ids

    def _start(self, id: str, finish: Finish) -> None:
        self._running[id] = asyncio.create_task(self._finish(id, finish), context=Context())
        self._running[id].add_done_callback(lambda _: self._running.pop(id))

    async def _finish(self, id: str, finish: Finish) -> None:
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
            self._files.release(id, taken.file)

    async def _take(self, id: str) -> TakenJob | None:
        if id in self._files.ids:  # where the file system has no locks
            return None
        try:
            found = await self._call(self._folder.take, id)
        except OSError as error:
            logger.warning("the spool can't be read: %s", error)
            return None
        if found is None:
            return None
        file, job = found
        try:
            read = read_request(job.request, job.inputs, self._formats)
            generation = with_current_model(read, self._info)
        except (ValueError, KeyError, TypeError, InvalidRequest):
            problem = "holds a request that this version does not understand"
            await self._call(self._folder.refuse, file, problem)
            return None
        self._files.add(id, file)
        images = job.images
        if job.origin != origin_digest(self._info, generation):
            logger.warning("job %s of the spool begins anew: its model or the version changed", id)
            images = (None,) * len(images)
        return TakenJob(file, job, generation, images)

    def _write_all(
        self, runs: Sequence[JobRun], snapshot: Snapshots, *, makes_room: bool
    ) -> dict[str, Future[_Written]]:
        """Begin to write jobs as they are now; return what comes of it, by their ids."""
        writes = {}
        for run in runs:
            if run.claim is not None:  # else nobody could ask for it
                images = tuple(_furthest(snapshot(task.id), task.resume) for task in run.tasks)
                writes[run.job.id] = self._threads.submit(
                    self._write, run, run.claim, images, makes_room=makes_room
                )
        return writes

    def _write(
        self,
        run: JobRun,
        claim: IdempotencyClaim,
        images: tuple[ImageSnapshot | None, ...],
        *,
        makes_room: bool,
    ) -> _Written:
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
                run.job.webhook,
            )
            return _Written(True, self._files.write(job, makes_room=makes_room))
        except SpoolFull as error:
            logger.warning("job %s is not kept in the spool: %s", run.job.id, error)
            return _Written(False, error.dropped)
        except OSError as error:
            logger.warning("job %s is not kept in the spool: %s", run.job.id, error)
        except Exception:  # of one job, which must not keep the others from being written
            logger.exception("job %s is not kept in the spool", run.job.id)
        return _Written(False)

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
