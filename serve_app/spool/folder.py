"""`SpoolFolder`: the files of spooled jobs, one a job, and which process works at which.

Several ingress processes share it. Whoever works at a job has the lock on its file, which the
system gives up when the process ends, however it ends: then the file is there for the next.
"""

import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.core.errors import SettingsError
from serve_app.spool.access import access_problem
from serve_app.spool.format import SpoolRefused, decode, encode
from serve_app.spool.spool_file import SpoolFile, is_at, lock
from serve_app.spool.spooled_job import SpooledJob

logger = logging.getLogger("aura.spool")

MAX_BYTES = 1 << 30  # of all files together; the oldest are dropped first
MAX_AGE_S = 86_400.0  # as long as an idempotency key keeps its seed
_NAME = re.compile(r"([0-9a-f]{32})\.safetensors")
_REFUSED = re.compile(rf"{_NAME.pattern}\.refused")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\..+\.part")
_STALE_S = 60.0  # after which a temporary file is of a process that died
_READ = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a fifo would block


class SpoolFull(Exception):
    """A job has no room in the spool. `dropped` are the ids of those that were dropped for it."""

    def __init__(self, problem: str, dropped: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.dropped = dropped


class SpoolFolder:
    """A folder of spooled jobs, made if it is missing.

    Nothing in it but the service's own file names is ever changed. A file that can't be used is
    renamed to `NAME.refused`, and the log says why.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._unusable: set[str] = set()  # names of files that could not be set aside either

    def open(self) -> None:
        """Make the folder, or check it. Raises `SettingsError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = access_problem(self.path.stat())
        except OSError as error:
            problem = f"can't be used: {error.strerror}"
        if problem:
            raise SettingsError(problem, "DRAIN_SPOOL", subject=f"DRAIN_SPOOL={self.path}")

    def write(
        self, job: SpooledJob, *, makes_room: bool = True
    ) -> tuple[SpoolFile, tuple[str, ...]]:
        """Keep a job, in place of an earlier file of it; return its file, which has the lock.

        Return the ids of jobs that made room, too. Without `makes_room` none does: a copy of a job
        that goes on is worth less than the only one of a job that was stopped. Raises `SpoolFull`,
        or `OSError` as for a full disk. A file is there whole or not at all.
        """
        data, path = encode(job), self._path(job.id)
        if len(data) > self._max_bytes:
            raise SpoolFull(f"{len(data)} bytes don't fit into {self._max_bytes}")
        if not makes_room:  # before anything is written: there is a next time every few seconds
            self._make_room(len(data), keep=path, of_jobs=False)
        descriptor, name = tempfile.mkstemp(".part", f".{job.id}.", self.path)  # with mode 0600
        temporary = Path(name)
        try:
            lock(temporary, descriptor)  # so that nobody finds it unlocked
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(descriptor)
            with self._lock() as folder:
                dropped = self._make_room(len(data), keep=path, of_jobs=makes_room)
                temporary.replace(path)
                os.fsync(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return SpoolFile(path, descriptor, job.progress), dropped

    def ids(self) -> list[str]:
        """Return the ids of the jobs whose files may be taken, the oldest first.

        Drops files that are too old, also those that were set aside so long ago, and what a process
        that died had not finished writing.
        """
        now = self._clock()
        for file, status in self._files() + self._files(_REFUSED):
            if now - status.st_mtime > self._max_age_s:
                self._drop(file, "is too old")
        ids = [file.stem for file, _ in self._files() if file.name not in self._unusable]
        for file, status in self._files(_TEMPORARY):
            if now - status.st_mtime > _STALE_S:
                with suppress(OSError):
                    file.unlink()
        return ids

    def take(self, id: str) -> tuple[SpoolFile, SpooledJob] | None:
        """Return a job for this process to work at, and its file, which has the lock.

        None if there is none, or if it is locked: then the file is not read.
        """
        path = self._path(id)
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return None
        except OSError as error:  # such as a symbolic link, or another user's file
            self._refuse(path, _problem_at(path) or f"can't be opened: {error.strerror}")
            return None
        try:
            job = self._read(path, descriptor)
        except SpoolRefused as error:
            self._refuse(path, str(error))
            job = None
        except BaseException:
            os.close(descriptor)
            raise
        if job is None:
            os.close(descriptor)
            return None
        return SpoolFile(path, descriptor, job.progress), job

    def holds(self, id: str) -> bool:
        """Return whether there is a file of the job, whoever has it."""
        return self._path(id).exists()

    def refuse(self, file: SpoolFile, reason: str) -> None:
        """Set a taken file aside, whose job can't be run."""
        self._refuse(file.path, reason)
        file.release()

    def _read(self, path: Path, descriptor: int) -> SpooledJob | None:
        """Return the job of an open file; None if another process has it. Raises `SpoolRefused`."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SpoolRefused("is no plain file")
        if problem := access_problem(status):
            raise SpoolRefused(problem)
        if status.st_size > self._max_bytes:
            raise SpoolRefused(f"has {status.st_size} bytes, more than the spool may have")
        if not lock(path, descriptor) or not is_at(path, descriptor):  # or it was just deleted
            return None
        try:
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                data = stream.read()
        except OSError as error:
            raise SpoolRefused(f"can't be read: {error.strerror}") from None
        job = decode(data)
        if job.id != path.stem:
            raise SpoolRefused("has another name than its job")
        return job

    def _path(self, id: str) -> Path:
        if not _NAME.fullmatch(f"{id}.safetensors"):
            raise ValueError(f"{id} is no id of a job")
        return self.path / f"{id}.safetensors"

    def _files(self, name: re.Pattern[str] = _NAME) -> list[tuple[Path, os.stat_result]]:
        """Return the files with such names, by default those of jobs, the oldest first."""
        found = []
        for file in self.path.iterdir():
            if name.fullmatch(file.name):
                with suppress(OSError):
                    found.append((file, file.lstat()))
        return sorted(found, key=lambda entry: (entry[1].st_mtime, entry[0].name))

    def _make_room(
        self, size: int, keep: Path | None = None, *, of_jobs: bool = True
    ) -> tuple[str, ...]:
        """Drop files until a new one of this size fits; return the ids of the jobs among them.

        First go those that were set aside, then the oldest `of_jobs`. Raises `SpoolFull`.
        """
        refused, jobs = self._files(_REFUSED), [e for e in self._files() if e[0] != keep]
        total = size + sum(status.st_size for _, status in refused + jobs)
        droppable = [
            entry
            for entry in refused + (jobs if of_jobs else [])
            if entry[0].name not in self._unusable
        ]
        if total - sum(status.st_size for _, status in droppable) > self._max_bytes:
            raise SpoolFull(f"there is no room for {size} bytes")
        dropped = []
        for file, status in droppable:
            if total <= self._max_bytes:
                break
            if self._drop(file, "had to make room"):
                total -= status.st_size
                if _NAME.fullmatch(file.name):
                    dropped.append(file.stem)
        if total > self._max_bytes:
            raise SpoolFull(f"there is no room for {size} bytes", tuple(dropped))
        return tuple(dropped)

    def _drop(self, file: Path, reason: str) -> bool:
        """Delete a file; return whether it is gone."""
        if file.name in self._unusable:
            return False
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            self._unusable.add(file.name)
            logger.warning("%s %s; it can't be deleted (%s)", file, reason, error.strerror)
            return False
        logger.warning("%s %s, and is deleted", file, reason)
        return True

    def _refuse(self, file: Path, reason: str) -> None:
        """Set a file aside, so that it is looked at once.

        Its age counts from now. What is set aside takes no more room than jobs may.
        """
        refused = file.with_name(f"{file.name}.refused")
        try:
            file.replace(refused)
        except OSError as error:
            self._unusable.add(file.name)
            logger.warning("%s %s; it can't be renamed (%s)", file, reason, error.strerror)
            return
        logger.warning("%s %s; it is now %s", file, reason, refused.name)
        now = self._clock()
        with suppress(OSError):  # another user's file
            os.utime(refused, (now, now), follow_symlinks=False)
        with suppress(OSError, SpoolFull), self._lock():
            self._make_room(0)

    @contextmanager
    def _lock(self) -> Iterator[int]:
        """Hold the folder, so that one process at a time makes room; yield its descriptor."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _problem_at(path: Path) -> str | None:
    """Return what is wrong with the rights of a file that can't be opened, if that can be said."""
    with suppress(OSError):
        return access_problem(path.lstat())
    return None
