"""The ledger: the service's one memory, of jobs, claims, allowances and accepted terms.

Knows no HTTP and does no work: small state, written through to SQLite, so that it may die and be
restarted at any time. Off the way of a step and of a picture. Allowances alone live in memory: a
restart forgives them.
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
    LOST,
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobResult,
    JobState,
)
from serve_app.core.service.rate_limit import Bucket, RateLimit, draw, is_full

KEPT = 600.0  # seconds that an ended job and its answer are remembered
CLAIMED = 86_400.0  # seconds that a key keeps its seed, and so its bytes
LEASE = 10.0  # seconds without a sign of life, after which an owner counts as dead
LONGEST = 7200.0  # seconds, after which a running job is forgotten: no deadline is so late
MOST_BYTES = 512 * 2**20  # of answers; the oldest go first
_TIDY_EVERY = 30.0  # seconds
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
    """All that outlives an ingress process. One instance; its methods never wait for another."""

    def __init__(
        self,
        file: Path | None,
        clock: Callable[[], float] = time.time,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)  # pictures remember their prompts: nobody else may read them
        self._db = sqlite3.connect(
            file or ":memory:",
            isolation_level=None,
            check_same_thread=False,  # there is one caller at a time: the replica's event loop
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA busy_timeout=5000")
        self._db.executescript(_SCHEMA)
        self._clock = clock
        self._most_bytes = most_bytes
        self._began = clock()
        self._alive: dict[str, float] = {}  # owner: when it was heard of
        self._buckets: dict[str, Bucket] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tidied = 0.0

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """The job is remembered; with a claim, only if no living job has the claim already."""
        self._tidy()
        self._alive[job.owner] = self._clock()
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
            return ClaimResult(id, seed, is_owner=True)  # asked again, since our answer was lost
        if fingerprint != claim.fingerprint:
            return ClaimResult(None, 0, is_owner=False)
        known = self._read(id)
        if known is not None and (known.state is JobState.RUNNING or known.result is not None):
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
        error: tuple[str, str] | None,
        result: JobResult | None,
    ) -> None:
        """How the job ended is remembered, and whoever waited for it is told.

        Nothing happens when it is another's by now: the owner was given up as dead, and was slow.
        """
        code, message = error or (None, None)
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
        if event := self._ends.pop(id, None):
            event.set()
        self._make_room()
        self._tidy()

    async def get(self, id: str, wait: float) -> Job | None:
        """The job, as soon as it has ended or after `wait` seconds; None when there is none."""
        job = self._read(id)
        if job is not None and job.state is JobState.RUNNING and wait > 0:
            event = self._ends.setdefault(id, asyncio.Event())
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), min(wait, LEASE))
            job = self._read(id)
        return job

    async def heartbeat(self, owner: str) -> None:
        """The owner's jobs are still worked at."""
        self._alive[owner] = self._clock()

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """0 when the cost was taken from the caller's allowance, else the seconds to wait."""
        now = self._clock()
        self._buckets[caller], wait = draw(limit, self._buckets.get(caller), cost, now)
        full = [c for c, b in self._buckets.items() if is_full(limit, b, now)]
        for name in full:
            del self._buckets[name]
        return wait

    async def accept_terms(self, caller: str, terms: str) -> None:
        """The caller has accepted the terms with this digest."""
        self._db.execute(
            "INSERT OR REPLACE INTO terms VALUES (?, ?, ?)", (caller, terms, self._clock())
        )

    async def accepted_terms(self, caller: str) -> str | None:
        """The digest of the terms that the caller accepted last."""
        row = self._db.execute("SELECT terms FROM terms WHERE caller = ?", (caller,)).fetchone()
        return row[0] if row else None

    async def check_health(self) -> None:
        """Serve's health check: raises when the books can't be read, so that Serve replaces it."""
        self._db.execute("SELECT 1").fetchone()

    def close(self) -> None:
        """The books are closed; what was told is on disk."""
        self._db.close()

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
            return Job(id, caller, owner, created, JobState.FAILED, LOST)
        result = None
        if pngs is not None:
            ends = list(accumulate(json.loads(sizes), initial=0))
            result = JobResult(tuple(pngs[a:b] for a, b in pairwise(ends)), meta, created)
        error = (code, message) if code else None
        return Job(id, caller, owner, created, JobState(state), error, result)

    def _is_dead(self, owner: str) -> bool:
        """A ledger that has just started has heard of nobody yet, and waits a lease."""
        return self._clock() - self._alive.get(owner, self._began) > LEASE

    def _tidy(self) -> None:
        """What is too old or too much is forgotten."""
        now = self._clock()
        if now - self._tidied < _TIDY_EVERY:
            return
        self._tidied = now
        self._db.execute(
            "DELETE FROM jobs WHERE ended < ? OR created < ?", (now - KEPT, now - LONGEST)
        )
        self._db.execute("DELETE FROM claims WHERE created < ?", (now - CLAIMED,))
        self._alive = {o: at for o, at in self._alive.items() if now - at < LONGEST}
        self._ends = {id: e for id, e in self._ends.items() if self._read(id) is not None}

    def _make_room(self) -> None:
        """Answers take no more than their room: the oldest are gone, their jobs still known."""
        total = 0
        for id, size in self._db.execute(
            "SELECT id, length(pngs) FROM jobs WHERE pngs IS NOT NULL ORDER BY ended DESC"
        ).fetchall():
            total += size
            if total > self._most_bytes:
                self._db.execute("UPDATE jobs SET pngs = NULL WHERE id = ?", (id,))
