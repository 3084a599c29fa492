"""The ledger: the service's one memory, of jobs, idempotency claims, rate limits and terms.

No HTTP and no work: small state, written through to SQLite, so that the process may die and be
restarted at any time. No step waits for it; an image waits only where a rate limit, terms or an
idempotency key must be checked first. Heartbeats and the rate limits' buckets are only in memory: a
restart fills the buckets, and owners count as alive for one more lease.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path

from serve_app.core.service.jobs import (
    OWNER_LOST,
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobError,
    JobResult,
    JobState,
)
from serve_app.core.service.rate_limit import RateLimit, TokenBucket, consume, is_full
from serve_app.core.startup_error import startup_errors

RESULT_TTL = 600.0  # seconds that a finished job and its result are kept
CLAIM_TTL = 86_400.0  # seconds that a key keeps its seed, and so its bytes
LEASE = 10.0  # seconds without a heartbeat, after which an owner counts as dead
MAX_JOB_AGE = 7200.0  # seconds, after which any job is deleted: every deadline is earlier
MAX_BYTES = 512 * 2**20  # of results; the oldest are deleted first
_CLEANUP_INTERVAL = 30.0  # seconds
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, caller TEXT, owner TEXT, created REAL, state TEXT,
    ended REAL, code TEXT, message TEXT, meta TEXT, pngs BLOB, sizes TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended);
CREATE TABLE IF NOT EXISTS claims (
    scope TEXT PRIMARY KEY, fingerprint TEXT, seed INTEGER, job TEXT, created REAL, taker TEXT
);
CREATE TABLE IF NOT EXISTS terms (caller TEXT PRIMARY KEY, terms TEXT, accepted REAL);
"""


class Ledger:
    """All that outlives an ingress process. There is one instance; no method waits for another."""

    @startup_errors("the ledger")
    def __init__(
        self,
        file: Path | None,
        clock: Callable[[], float] = time.time,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)  # images carry their prompts, so nobody else may read them
        self._db = sqlite3.connect(
            file or ":memory:",
            isolation_level=None,
            check_same_thread=False,  # the replica's event loop is the only caller
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA busy_timeout=5000")
        self._db.executescript(_SCHEMA)
        self._clock = clock
        self._most_bytes = max_bytes
        self._started = clock()
        self._last_heartbeat: dict[str, float] = {}  # by owner
        self._buckets: dict[str, TokenBucket] = {}  # by caller
        self._rate_limit: RateLimit | None = None  # that the buckets are for
        self._end_events: dict[str, asyncio.Event] = {}
        self._cleaned_up = 0.0

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """Keep a job; with a claim, only if no living job has the claim already.

        Return the job that the claim stands for, and whether the caller is to work at it.
        """
        self._clean_up()
        self._last_heartbeat[job.owner] = self._clock()
        if claim is None:
            self._insert(job)
            return ClaimResult(job.id, 0, is_owner=True)
        row = self._db.execute(
            "SELECT fingerprint, seed, job, taker FROM claims WHERE scope = ?", (claim.scope,)
        ).fetchone()
        if row is None:
            self._insert(job)
            self._db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (claim.scope, claim.fingerprint, claim.seed, job.id, self._clock(), job.id),
            )
            return ClaimResult(job.id, claim.seed, is_owner=True)
        fingerprint, seed, id, taker = row
        if taker == job.id:
            return ClaimResult(
                id, seed, is_owner=True
            )  # the same call again: our response was lost
        if fingerprint != claim.fingerprint:
            return ClaimResult(None, 0, is_owner=False)
        if self._has_use(id):
            return ClaimResult(id, seed, is_owner=False)
        self._db.execute("DELETE FROM jobs WHERE id = ?", (id,))
        self._insert(Job(id, job.caller, job.owner, job.created))
        self._db.execute("UPDATE claims SET taker = ? WHERE scope = ?", (job.id, claim.scope))
        return ClaimResult(id, seed, is_owner=True)

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """Keep how the job ended, and wake those who wait for it.

        Does nothing if another process has taken over the job: this owner was presumed dead.
        """
        code, message = (error.code, error.message) if error else (None, None)
        meta = pngs = sizes = None
        if result is not None:
            meta, pngs = result.meta, b"".join(result.pngs)
            sizes = json.dumps([len(png) for png in result.pngs])
        changed = self._db.execute(
            "UPDATE jobs SET state = ?, ended = ?, code = ?, message = ?, meta = ?, pngs = ?,"
            " sizes = ? WHERE id = ? AND owner = ? AND state = ?",
            (state, self._clock(), code, message, meta, pngs, sizes, id, owner, JobState.RUNNING),
        )
        if changed.rowcount == 0:
            return
        if state is not JobState.SUCCEEDED:
            self._db.execute("DELETE FROM claims WHERE job = ?", (id,))
        if event := self._end_events.pop(id, None):
            event.set()
        self._limit_size()
        self._clean_up()

    async def get(self, id: str, wait: float) -> Job | None:
        """Return the job, once it has ended or after `wait` seconds; None if there is none."""
        job = self._read(id)
        if job is not None and job.state is JobState.RUNNING and wait > 0:
            event = self._end_events.setdefault(id, asyncio.Event())
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), min(wait, LEASE))
            job = self._read(id)
        return job

    async def heartbeat(self, owner: str) -> None:
        """Note that the owner still works at its jobs."""
        self._last_heartbeat[owner] = self._clock()

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """Take the cost from the caller's bucket and return 0, or return the seconds to wait."""
        self._rate_limit = limit
        bucket = self._buckets.get(caller)
        self._buckets[caller], wait = consume(limit, bucket, cost, self._clock())
        self._clean_up()
        return wait

    async def accept_terms(self, caller: str, terms: str) -> None:
        """Keep that the caller has accepted the terms with this digest."""
        self._db.execute(
            "INSERT OR REPLACE INTO terms VALUES (?, ?, ?)", (caller, terms, self._clock())
        )

    async def accepted_terms(self, caller: str) -> str | None:
        """Return the digest of the terms that the caller accepted last."""
        row = self._db.execute("SELECT terms FROM terms WHERE caller = ?", (caller,)).fetchone()
        return row[0] if row else None

    async def check_health(self) -> None:
        """Read the database: an error makes Serve replace this replica."""
        self._db.execute("SELECT 1").fetchone()

    def _insert(self, job: Job) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO jobs (id, caller, owner, created, state) VALUES (?, ?, ?, ?, ?)",
            (job.id, job.caller, job.owner, job.created, job.state),
        )

    def _read(self, id: str) -> Job | None:
        row = self._db.execute(
            "SELECT caller, owner, created, state, code, message, meta, pngs, sizes FROM jobs"
            " WHERE id = ?",
            (id,),
        ).fetchone()
        if row is None:
            return None
        caller, owner, created, state, code, message, meta, pngs, sizes = row
        if state == JobState.RUNNING and self._is_dead(owner):
            return Job(id, caller, owner, created, JobState.FAILED, OWNER_LOST, is_abandoned=True)
        result = None
        if pngs is not None:
            ends = list(accumulate(json.loads(sizes), initial=0))
            result = JobResult(tuple(pngs[a:b] for a, b in pairwise(ends)), meta, created)
        error = JobError(code, message) if code else None
        return Job(id, caller, owner, created, JobState(state), error, result)

    def _has_use(self, id: str) -> bool:
        """Return whether a job is worked at or has its result. Reads no image."""
        row = self._db.execute(
            "SELECT owner, state, pngs IS NOT NULL FROM jobs WHERE id = ?", (id,)
        ).fetchone()
        if row is None:
            return False
        owner, state, has_result = row
        return has_result or (state == JobState.RUNNING and not self._is_dead(owner))

    def _is_dead(self, owner: str) -> bool:
        """Return whether no heartbeat came for a lease, counted from the ledger's own start."""
        return self._clock() - self._last_heartbeat.get(owner, self._started) > LEASE

    def _clean_up(self) -> None:
        """Delete what is too old, at most once in a while."""
        now = self._clock()
        if now - self._cleaned_up < _CLEANUP_INTERVAL:
            return
        self._cleaned_up = now
        self._db.execute(
            "DELETE FROM jobs WHERE ended < ? OR created < ?", (now - RESULT_TTL, now - MAX_JOB_AGE)
        )
        self._db.execute("DELETE FROM claims WHERE created < ?", (now - CLAIM_TTL,))
        self._last_heartbeat = {
            owner: time for owner, time in self._last_heartbeat.items() if now - time < MAX_JOB_AGE
        }
        jobs = {id for (id,) in self._db.execute("SELECT id FROM jobs")}
        self._end_events = {id: event for id, event in self._end_events.items() if id in jobs}
        if limit := self._rate_limit:
            self._buckets = {
                caller: bucket
                for caller, bucket in self._buckets.items()
                if not is_full(limit, bucket, now)
            }

    def _limit_size(self) -> None:
        """Delete the oldest results beyond `max_bytes`; their jobs stay."""
        total = 0
        for id, size in self._db.execute(
            "SELECT id, length(pngs) FROM jobs WHERE pngs IS NOT NULL ORDER BY ended DESC"
        ).fetchall():
            total += size
            if total > self._most_bytes:
                self._db.execute("UPDATE jobs SET pngs = NULL WHERE id = ?", (id,))
