"""Jobs and the claims of idempotency keys in the ledger's SQLite file: no decision is made here."""

import sqlite3
from collections.abc import Iterable

from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    IsLost,
    Job,
    JobState,
    KeptClaim,
    KeptJob,
    RunningJob,
    Takeover,
    decide_claim,
)
from serve_app.core.service.webhooks import lost_job_wait, webhook_of
from serve_app.ledger_store.sqlite_webhooks import add_webhook, forget_webhooks
from serve_app.ledger_store.store import ABANDONED, abandoned


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
    kept = KeptClaim(*row)
    decision = decide_claim(job, claim, kept, lambda: kept_job(db, kept.job), is_lost)
    if isinstance(decision, ClaimResult):
        return decision
    _take_over(db, decision, job, claim)
    return decision.result


def _take_over(
    db: sqlite3.Connection, takeover: Takeover, job: Job, claim: IdempotencyClaim
) -> None:
    db.execute("DELETE FROM jobs WHERE id = ?", (takeover.job.id,))
    forget_webhooks(db, takeover.job.id)
    _insert(db, takeover.job)
    db.execute("UPDATE claims SET taker = ? WHERE scope = ?", (job.id, claim.scope))


def _insert(db: sqlite3.Connection, job: Job) -> None:
    db.execute(
        "INSERT OR IGNORE INTO jobs (id, caller, owner, created, state, webhook)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (job.id, job.caller, job.owner, job.created, job.state, job.webhook),
    )


def kept_job(db: sqlite3.Connection, id: str) -> KeptJob | None:
    """Return what decides about a claim's job; None if it is not kept any more."""
    row = db.execute(
        "SELECT owner, created, state, pngs IS NOT NULL FROM jobs WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        return None
    owner, created, state, has_result = row
    return KeptJob(RunningJob(id, owner, created), state, bool(has_result))


def abandon_jobs(db: sqlite3.Connection, jobs: Iterable[RunningJob], now: float) -> None:
    """Keep that nobody works at these jobs any more, unless others own them by now."""
    for job in jobs:
        row = db.execute(
            "SELECT caller, webhook FROM jobs WHERE id = ? AND owner = ? AND state = ?",
            (job.id, job.owner, JobState.RUNNING),
        ).fetchone()
        if row is not None:
            db.execute(
                "UPDATE jobs SET state = ?, ended = ? WHERE id = ?", (ABANDONED, now, job.id)
            )
            caller, webhook = row
            lost = abandoned(Job(job.id, caller, job.owner, job.created, webhook=webhook))
            claim = db.execute("SELECT 1 FROM claims WHERE job = ?", (job.id,)).fetchone()
            add_webhook(db, webhook_of(lost, now), now, now + lost_job_wait(claim is not None))
