"""Jobs in the ledger's SQLite file: how they end, and are read, listed and deleted."""

import json
import sqlite3
from typing import Any

from serve_app.core.service.daily_quota import day_of
from serve_app.core.service.jobs import Job, JobError, JobFilter, JobPlace, JobResult, JobState
from serve_app.core.service.webhooks import webhook_of
from serve_app.ledger_store import sqlite_callers
from serve_app.ledger_store.sqlite_file import checksum
from serve_app.ledger_store.sqlite_webhooks import (
    add_webhook,
    delete_old_webhooks,
    forget_webhooks,
)
from serve_app.ledger_store.store import (
    ABANDONED,
    CLAIM_TTL,
    MAX_JOB_AGE,
    RESULT_TTL,
    end_of_job,
    job_of_row,
    states_of_rows,
)


def read_job(db: sqlite3.Connection, id: str) -> tuple[Any, ...] | None:
    """Return the row of a job: the arguments of `job_of_row` after the id, and its result."""
    row: tuple[Any, ...] | None = db.execute(
        "SELECT caller, owner, created, state, code, message, meta, pngs, sizes, checksum"
        " FROM jobs WHERE id = ?",
        (id,),
    ).fetchone()
    return row


def finish_job(
    db: sqlite3.Connection,
    id: str,
    owner: str,
    state: JobState,
    error: JobError | None,
    result: JobResult | None,
    now: float,
) -> bool:
    """See `LedgerStore.finish`; results are not limited yet."""
    end, sizes, digest = end_of_job(state, error, result), None, None
    if end.meta is not None and end.pngs is not None:
        sizes = json.dumps(end.sizes)
        digest = checksum(end.meta, sizes, end.pngs)
    row = db.execute(
        "SELECT caller, created, webhook FROM jobs WHERE id = ? AND owner = ? AND state IN (?, ?)",
        (id, owner, JobState.RUNNING, ABANDONED),
    ).fetchone()
    if row is None:
        return False
    db.execute(
        "UPDATE jobs SET state = ?, ended = ?, code = ?, message = ?, meta = ?, pngs = ?,"
        " sizes = ?, checksum = ? WHERE id = ?",
        (end.state, now, end.code, end.message, end.meta, end.pngs, sizes, digest, id),
    )
    caller, created, webhook = row
    ended = Job(id, caller, owner, created, state, error, webhook=webhook)
    forget_webhooks(db, id)  # that it was lost
    add_webhook(db, webhook_of(ended, now), now, now)
    if state is not JobState.SUCCEEDED:
        db.execute("DELETE FROM claims WHERE job = ?", (id,))
    return True


def list_jobs(db: sqlite3.Connection, wanted: JobFilter) -> list[Job]:
    """See `LedgerStore.find`."""
    states = states_of_rows(wanted.state)
    before = wanted.before or JobPlace(float("inf"), "")
    rows = db.execute(
        "SELECT id, caller, owner, created, state, code, message FROM jobs WHERE caller = ?"
        f" AND state IN ({', '.join('?' * len(states))}) AND (created, id) < (?, ?)"
        " ORDER BY created DESC, id DESC LIMIT ?",
        (wanted.caller, *states, before.created, before.id, wanted.limit),
    )
    return [job_of_row(*row) for row in rows]


def delete_old(db: sqlite3.Connection, now: float) -> None:
    """See `LedgerStore.delete_old`."""
    db.execute(
        "DELETE FROM jobs WHERE ended < ? OR created < ?", (now - RESULT_TTL, now - MAX_JOB_AGE)
    )
    db.execute("DELETE FROM claims WHERE created < ?", (now - CLAIM_TTL,))
    delete_old_webhooks(db, now)
    sqlite_callers.delete_options(db, now)
    sqlite_callers.delete_usage(db, day_of(now))
