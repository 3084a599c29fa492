"""`PostgresStore`: the ledger in a schema of a PostgreSQL database, which outlives any machine.

Claims are locked before jobs, and jobs before webhooks, in every transaction, so that none waits
for another in a circle.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from serve_app.core.service.daily_quota import day_of
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    IsLost,
    Job,
    JobError,
    JobFilter,
    JobPlace,
    JobState,
    KeptClaim,
    RunningJob,
    decide_claim,
)
from serve_app.core.service.jobs import JobResult as Result
from serve_app.core.service.ledger_place import LedgerDatabase
from serve_app.core.service.webhooks import DueWebhooks, webhook_of
from serve_app.ledger_store import postgres_callers
from serve_app.ledger_store.postgres_connection import (
    DatabaseLock,
    connection_text,
    prepare_session,
)
from serve_app.ledger_store.postgres_errors import named_errors
from serve_app.ledger_store.postgres_jobs import (
    abandon_jobs,
    insert_job,
    kept_job,
    take_over_job,
)
from serve_app.ledger_store.postgres_schema import migrate
from serve_app.ledger_store.postgres_webhooks import (
    add_webhook,
    delete_old_webhooks,
    forget_webhooks,
    settle_webhook,
    take_webhooks,
)
from serve_app.ledger_store.store import (
    ABANDONED,
    CLAIM_TTL,
    LOCK_WAIT_S,
    MAX_BYTES,
    MAX_JOB_AGE,
    RESULT_TTL,
    KeptOption,
    end_of_job,
    job_of_row,
    split,
    states_of_rows,
)

_MAX_CONNECTIONS = 4
_POOL_WAIT_S = 2.0  # seconds that a call waits for a connection
_RECONNECT_S = 5.0  # seconds after which the pool waits for the next call to try again


class PostgresStore:
    """A `LedgerStore`. Opening it raises `LedgerFault` or `LedgerInUse`."""

    notice = ""
    check_interval_s = 2.0  # for the lock

    def __init__(
        self,
        place: LedgerDatabase,
        max_bytes: int = MAX_BYTES,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self._schema = place.schema
        self._most_bytes = max_bytes
        self._lock = DatabaseLock(place)
        self._pool = ConnectionPool(
            connection_text(place),
            min_size=1,
            max_size=_MAX_CONNECTIONS,
            open=False,
            configure=self._prepare,
            check=ConnectionPool.check_connection,
            timeout=_POOL_WAIT_S,
            reconnect_timeout=_RECONNECT_S,
            name="ledger",
        )
        try:
            with named_errors():
                self._lock.acquire(lock_wait_s)
                self._pool.open()
                with self._pool.connection() as connection:
                    migrate(connection, self._schema)
        except BaseException:
            self.close()
            raise

    def create(
        self, job: Job, claim: IdempotencyClaim | None, now: float, is_lost: IsLost
    ) -> ClaimResult:
        """See `LedgerStore`."""
        with self._transaction() as db:
            if claim is None:
                insert_job(db, job)
                return ClaimResult(job.id, 0, is_owner=True)
            while True:
                added = db.execute(
                    "INSERT INTO claims VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (claim.scope, claim.fingerprint, claim.seed, job.id, now, job.id),
                )
                if added.rowcount:
                    insert_job(db, job)
                    return ClaimResult(job.id, claim.seed, is_owner=True)
                row = db.execute(
                    "SELECT fingerprint, seed, job, taker FROM claims WHERE scope = %s FOR UPDATE",
                    (claim.scope,),
                ).fetchone()
                if row is not None:  # else its job has just failed
                    break
            kept = KeptClaim(*row)
            decision = decide_claim(job, claim, kept, lambda: kept_job(db, kept.job), is_lost)
            if isinstance(decision, ClaimResult):
                return decision
            take_over_job(db, decision, job, claim)
            return decision.result

    def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: Result | None,
        now: float,
    ) -> bool:
        """See `LedgerStore`."""
        end = end_of_job(state, error, result)
        with self._transaction() as db:
            db.execute("SELECT 1 FROM claims WHERE job = %s FOR UPDATE", (id,))
            row = db.execute(
                "UPDATE jobs SET state = %s, ended = %s, code = %s, message = %s, meta = %s,"
                " pngs = %b, sizes = %s WHERE id = %s AND owner = %s AND state IN (%s, %s)"
                " RETURNING caller, created, webhook",
                (
                    *(end.state, now, end.code, end.message, end.meta, end.pngs, end.sizes),
                    *(id, owner, str(JobState.RUNNING), ABANDONED),
                ),
            ).fetchone()
            if row is None:
                return False
            caller, created, webhook = row
            ended = Job(id, caller, owner, created, state, error, webhook=webhook)
            forget_webhooks(db, id)  # that it was lost
            add_webhook(db, webhook_of(ended, now), now, now)
            if state is not JobState.SUCCEEDED:
                db.execute("DELETE FROM claims WHERE job = %s", (id,))
            if end.pngs is not None:
                self._limit_size(db)
            return True

    def read(self, id: str) -> Job | None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT caller, owner, created, state, code, message, meta, pngs, sizes FROM jobs"
                " WHERE id = %s",
                (id,),
                binary=True,
            ).fetchone()
        if row is None:
            return None
        caller, owner, created, state, code, message, meta, pngs, sizes = row
        result = None if pngs is None else Result(split(pngs, sizes), meta, created)
        return job_of_row(id, caller, owner, created, state, code, message, result)

    def has_result(self, id: str) -> bool:
        """See `LedgerStore`."""
        with self._transaction() as db:
            job = kept_job(db, id)
        return job is not None and job.has_result

    def find(self, wanted: JobFilter) -> list[Job]:
        """See `LedgerStore`."""
        before = wanted.before or JobPlace(float("inf"), "")
        with self._transaction() as db:
            rows = db.execute(
                "SELECT id, caller, owner, created, state, code, message FROM jobs"
                " WHERE caller = %s AND state = ANY(%s) AND (created, id) < (%s, %s)"
                " ORDER BY created DESC, id DESC LIMIT %s",
                (
                    *(wanted.caller, list(states_of_rows(wanted.state))),
                    *(before.created, before.id, wanted.limit),
                ),
            ).fetchall()
        return [job_of_row(*row) for row in rows]

    def running(self) -> list[RunningJob]:
        """See `LedgerStore`."""
        with self._transaction() as db:
            rows = db.execute("SELECT id, owner, created FROM jobs WHERE state = 'running'")
            return [RunningJob(*row) for row in rows]

    def abandon(self, jobs: Collection[RunningJob], now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            abandon_jobs(db, jobs, now)

    def accept_terms(self, caller: str, terms: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            postgres_callers.accept_terms(db, caller, terms, now)

    def accepted_terms(self, caller: str) -> str | None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return postgres_callers.accepted_terms(db, caller)

    def take_webhooks(self, url: str, limit: int, now: float) -> DueWebhooks:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return take_webhooks(db, url, limit, now)

    def settle_webhook(self, id: str, due: float | None) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            settle_webhook(db, id, due)

    def secret(self, name: str, fresh: bytes) -> bytes:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return postgres_callers.secret(db, name, fresh)

    def set_option(self, caller: str, name: str, value: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            postgres_callers.set_option(db, caller, name, value, now)

    def option(self, caller: str, name: str) -> KeptOption | None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return postgres_callers.option(db, caller, name)

    def renew_option(self, caller: str, name: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            postgres_callers.renew_option(db, caller, name, now)

    def use(self, caller: str, day: str, cost: float, quota: float) -> bool:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return postgres_callers.use(db, caller, day, cost, quota)

    def delete_old(self, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            postgres_callers.delete_options(db, now)
            postgres_callers.delete_usage(db, day_of(now))
            db.execute("DELETE FROM claims WHERE created < %s", (now - CLAIM_TTL,))
            db.execute(
                "DELETE FROM jobs WHERE ended < %s OR created < %s",
                (now - RESULT_TTL, now - MAX_JOB_AGE),
            )
            delete_old_webhooks(db, now)

    def recover(self) -> None:
        """See `LedgerStore`."""
        with named_errors():
            self._lock.acquire_again()
        with self._transaction() as db:
            migrate(db, self._schema)
            db.execute("UPDATE version SET number = number")

    def check(self) -> None:
        """See `LedgerStore`. The server's own checksums guard what is kept."""
        with named_errors():
            self._lock.check_kept()
        with self._transaction() as db:
            db.execute("SELECT number FROM version")

    def interrupt(self) -> None:
        """See `LedgerStore`. Statements have a timeout of the server's."""

    def close(self) -> None:
        """See `LedgerStore`."""
        self._pool.close(timeout=0)
        self._lock.release()

    def _prepare(self, connection: Connection[Any]) -> None:
        prepare_session(connection, self._schema)

    def _limit_size(self, db: Connection[Any]) -> None:
        db.execute(
            "UPDATE jobs SET pngs = NULL WHERE id IN (SELECT id FROM (SELECT id,"
            " sum(octet_length(pngs)) OVER (ORDER BY ended DESC, id) AS total FROM jobs"
            " WHERE pngs IS NOT NULL) AS kept WHERE total > %s)",
            (self._most_bytes,),
        )

    @contextmanager
    def _transaction(self) -> Iterator[Connection[Any]]:
        """Commit what the block does, all of it or nothing."""
        with named_errors(), self._pool.connection() as connection:
            yield connection
