"""Jobs and claims for tests of the ledger's stores, and what damages a SQLite file."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from serve_app.core.service.jobs import IdempotencyClaim, Job, JobResult, JobState, RunningJob
from serve_app.ledger_store.store import LedgerStore

JOB = Job("job-1", "key:a", "owner-1", created=1000.0)
CLAIM = IdempotencyClaim("scope", "body", seed=7)
RESULT = JobResult((b"png one", b"png 2"), '{"seeds":[7,8]}', JOB.created)
PAGE = 4096  # bytes
KINDS = ("memory", "file", "postgresql")
Opening = Callable[[int], LedgerStore]  # with the most bytes of results


def none_lost(_: RunningJob) -> bool:
    return False


def all_lost(_: RunningJob) -> bool:
    return True


def succeed(store: LedgerStore, id: str = JOB.id, result: JobResult = RESULT) -> bool:
    return store.finish(id, JOB.owner, JobState.SUCCEEDED, None, result, JOB.created + 5)


def fill(store: LedgerStore, jobs: int = 30) -> None:
    """Keep jobs with results of several pages each."""
    for number in range(jobs):
        job = Job(f"kept-{number}", JOB.caller, JOB.owner, JOB.created)
        store.create(job, IdempotencyClaim(f"scope-{number}", "body", 7), JOB.created, none_lost)
        succeed(store, job.id, JobResult((os.urandom(9000),), "{}", JOB.created))


def damage_all(file: Path) -> None:
    """Overwrite a file as a whole."""
    _merge_log(file)
    _overwrite(file, 0, file.stat().st_size)


def damage_page(file: Path) -> None:
    """Overwrite the page where the table of jobs begins."""
    _merge_log(file)
    with closing(sqlite3.connect(file)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    _overwrite(file, (page - 1) * PAGE, PAGE)


def damage_result(file: Path) -> None:
    """Overwrite a few bytes in the middle of an image, which SQLite itself does not notice."""
    _merge_log(file)
    with closing(sqlite3.connect(file)) as db:
        (image,) = db.execute("SELECT pngs FROM jobs WHERE id = 'kept-0'").fetchone()
    part = image[5000:5032]
    _overwrite(file, file.read_bytes().index(part), len(part))


def _merge_log(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _overwrite(file: Path, start: int, size: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(os.urandom(size))
