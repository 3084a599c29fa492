"""Jobs in the ledger's PostgreSQL tables. The caller has begun a transaction."""

from collections.abc import Collection
from typing import Any

from psycopg import Connection

from serve_app.core.service.jobs import (
    IdempotencyClaim,
    Job,
    JobState,
    KeptJob,
    RunningJob,
    Takeover,
)
from serve_app.core.service.webhooks import lost_job_wait, webhook_of
from serve_app.ledger_store.postgres_webhooks import add_webhook, forget_webhooks
from serve_app.ledger_store.store import ABANDONED, abandoned


def insert_job(db: Connection[Any], job: Job) -> None:
    """Keep a job that runs."""
    db.execute(
        "INSERT INTO jobs (id, caller, owner, created, state, webhook)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (job.id, job.caller, job.owner, job.created, str(job.state), job.webhook),
    )


def take_over_job(
    db: Connection[Any], takeover: Takeover, job: Job, claim: IdempotencyClaim
) -> None:
    """Keep a job in place of the one that its claim stood for."""
    db.execute("DELETE FROM jobs WHERE id = %s", (takeover.job.id,))
    forget_webhooks(db, takeover.job.id)
    insert_job(db, takeover.job)
    db.execute("UPDATE claims SET taker = %s WHERE scope = %s", (job.id, claim.scope))


def kept_job(db: Connection[Any], id: str) -> KeptJob | None:
    """Return what decides about a claim's job; None if it is not kept any more."""
    row = db.execute(
        "SELECT owner, created, state, pngs IS NOT NULL FROM jobs WHERE id = %s", (id,)
    ).fetchone()
    if row is None:
        return None
    owner, created, state, has_result = row
    return KeptJob(RunningJob(id, owner, created), state, has_result)


def abandon_jobs(db: Connection[Any], jobs: Collection[RunningJob], now: float) -> None:
    """See `LedgerStore.abandon`."""
    rows = db.execute(
        "UPDATE jobs SET state = %s, ended = %s FROM unnest(%s::text[], %s::text[])"
        " AS lost (id, owner) WHERE jobs.id = lost.id AND jobs.owner = lost.owner"
        " AND state = %s RETURNING jobs.id, caller, jobs.owner, created, webhook,"
        " EXISTS (SELECT 1 FROM claims WHERE claims.job = jobs.id)",
        (
            *(ABANDONED, now, [job.id for job in jobs], [job.owner for job in jobs]),
            str(JobState.RUNNING),
        ),
    ).fetchall()
    for id, caller, owner, created, webhook, has_claim in rows:
        lost = abandoned(Job(id, caller, owner, created, webhook=webhook))
        add_webhook(db, webhook_of(lost, now), now, now + lost_job_wait(has_claim))
