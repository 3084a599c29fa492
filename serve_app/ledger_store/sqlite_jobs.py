"""Jobs in the ledger's SQLite file: how they are read, listed and deleted."""

import sqlite3
from typing import Any

from serve_app.core.service.daily_quota import day_of
from serve_app.core.service.jobs import Job, JobFilter, JobPlace
from serve_app.ledger_store import sqlite_callers
from serve_app.ledger_store.store import (
    CLAIM_TTL,
    MAX_JOB_AGE,
    RESULT_TTL,
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
    sqlite_callers.delete_usage(db, day_of(now))
