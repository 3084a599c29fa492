"""Who works at a job: the claims of idempotency keys in the ledger's SQLite file."""

import sqlite3

from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobState
from serve_app.ledger_store.store import IsLost, RunningJob


def create_job(
    db: sqlite3.Connection, job: Job, claim: IdempotencyClaim | None, now: float, is_lost: IsLost
) -> ClaimResult:
    """See `LedgerStore.create`. The caller has begun a transaction."""
    if claim is None:
        _insert(db, job)
        return ClaimResult(job.id, 0, is_owner=True)
    row = db.execute(
        "SELECT fingerprint, seed, job, taker FROM claims WHERE scope = ?", (claim.scope,)
    ).fetchone()
    if row is None:
        _insert(db, job)
        db.execute(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)",
            (claim.scope, claim.fingerprint, claim.seed, job.id, now, job.id),
        )
        return ClaimResult(job.id, claim.seed, is_owner=True)
    fingerprint, seed, id, taker = row
    if taker == job.id:  # the same call again: our response was lost
        return ClaimResult(id, seed, is_owner=True)
    if fingerprint != claim.fingerprint:
        return ClaimResult(None, 0, is_owner=False)
    if _has_use(db, id, is_lost):
        return ClaimResult(id, seed, is_owner=False)
    db.execute("DELETE FROM jobs WHERE id = ?", (id,))
    _insert(db, Job(id, job.caller, job.owner, job.created))
    db.execute("UPDATE claims SET taker = ? WHERE scope = ?", (job.id, claim.scope))
    return ClaimResult(id, seed, is_owner=True)


def _insert(db: sqlite3.Connection, job: Job) -> None:
    db.execute(
        "INSERT OR IGNORE INTO jobs (id, caller, owner, created, state) VALUES (?, ?, ?, ?, ?)",
        (job.id, job.caller, job.owner, job.created, job.state),
    )


def _has_use(db: sqlite3.Connection, id: str, is_lost: IsLost) -> bool:
    """Return whether a job is worked at or has its result. Reads no image."""
    row = db.execute(
        "SELECT owner, created, state, pngs IS NOT NULL FROM jobs WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        return False
    owner, created, state, has_result = row
    is_running = state == JobState.RUNNING
    return bool(has_result) or (is_running and not is_lost(RunningJob(id, owner, created)))
