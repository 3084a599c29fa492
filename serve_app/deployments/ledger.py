"""The ledger: the service's one memory, of jobs, idempotency claims, rate limits and terms.

No HTTP: small state, written through to a store, so that the process may die at any time. No step
waits for it; an image waits only where a rate limit, terms or a key must be checked first.
Heartbeats and buckets are in memory: a restart fills these, and gives owners one more lease.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from serve_app.core.errors import LedgerFault
from serve_app.core.service.daily_quota import day_of, seconds_left_of_day
from serve_app.core.service.info import LedgerHealth
from serve_app.core.service.jobs import (
    OWNER_LOST,
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobError,
    JobFilter,
    JobResult,
    JobState,
    RunningJob,
)
from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.core.service.rate_limit import RateLimit, TokenBucket, consume, is_full
from serve_app.core.service.warm_ups import WarmUp, WarmUps
from serve_app.core.service.webhooks import DueWebhooks
from serve_app.core.startup_error import startup_errors
from serve_app.ledger_store.async_store import AsyncStore
from serve_app.ledger_store.opening import open_store
from serve_app.ledger_store.store import MAX_JOB_AGE, LedgerStore, abandoned
from serve_app.ledger_store.used_option import used_option

LEASE = 10.0  # seconds without a heartbeat, after which an owner counts as dead
DISOWNED_AFTER = 30.0  # seconds in which an owner lists a job of its own, once it has created it
_SWEEP_INTERVAL = 3.0  # seconds between two searches for lost jobs
LOAD_TTL = 3.5  # seconds that an owner's load is passed on: it sends one every second
_CLEANUP_INTERVAL = 30.0  # seconds
_UPKEEP_WAIT = 1.0  # seconds of upkeep that a health check waits for
_PAUSE = 4.0  # seconds without any call: this process was suspended, for health is checked often


@dataclass(frozen=True, slots=True)
class _Heartbeat:
    time: float
    jobs: frozenset[str] | None = None  # that the owner works at; None: it has not said


class Ledger:
    """All that outlives an ingress process. There is one instance; no method blocks the loop.

    A store that does not work is no reason to fail: the methods that need it raise `LedgerFault`
    at once, `health` says why, and `check_health` tries to recover.
    """

    @startup_errors("the ledger")
    def __init__(
        self,
        place: LedgerPlace | None = None,
        clock: Callable[[], float] = time.time,
        opening: Callable[[LedgerPlace], LedgerStore] = open_store,
    ) -> None:
        self._clock = clock
        self._store = AsyncStore(lambda: opening(place or LedgerFile(None)), clock)
        self._started = clock()
        self._last_call: float | None = None  # by the monotonic clock, once health is checked
        self._heartbeats: dict[str, _Heartbeat] = {}  # by owner
        self._loads: dict[str, tuple[float, Mapping[str, Any]]] = {}  # by owner: when, and what
        self._buckets: dict[str, TokenBucket] = {}  # by caller
        self._rate_limit: RateLimit | None = None  # that the buckets are for
        self._warm_ups = WarmUps()
        self._end_events: dict[str, asyncio.Event] = {}
        self._cleaned_up = self._swept = 0.0
        self._upkeep: asyncio.Task[None] | None = None

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """Keep a job; with a claim, only if no living job has the claim already.

        Return the job that the claim stands for, and whether the caller is to work at it.
        """
        now = self._note_call()
        beat = self._heartbeats.get(job.owner)
        self._heartbeats[job.owner] = _Heartbeat(now, beat.jobs if beat else None)
        await self._clean_up()
        return await self._store.write(lambda store: store.create(job, claim, now, self._is_lost))

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """Keep how the job ended, and wake those who wait for it.

        Does nothing if another process has taken over the job: this owner was presumed dead. With
        the error `OWNER_LOST` its owner gives it up: a claim stays, for whoever takes the job over.
        """
        now = self._note_call()
        if error == OWNER_LOST:
            is_changed = await self._give_up(id, owner, now)
        else:
            is_changed = await self._store.write(
                lambda store: store.finish(id, owner, state, error, result, now)
            )
        if is_changed:
            self._wake(id)
        await self._clean_up()

    async def get(self, id: str, wait: float) -> Job | None:
        """Return the job, once it has ended or after `wait` seconds; None if there is none."""
        self._note_call()
        if wait <= 0:
            return await self._read(id)
        event = self._end_events.setdefault(id, asyncio.Event())  # it may end during the read
        job = await self._read(id)
        if job is None or job.state is not JobState.RUNNING:
            self._wake(id)
            return job
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), min(wait, LEASE))
        return await self._read(id)

    async def has_result(self, id: str) -> bool:
        """Return whether a job's images are kept."""
        self._note_call()
        return await self._store.read(lambda store: store.has_result(id))

    async def find(self, wanted: JobFilter) -> Sequence[Job]:
        """Return jobs of a caller, newest first, without their results."""
        self._note_call()
        found = await self._store.read(lambda store: store.find(wanted))
        return [abandoned(job) if self._is_lost_job(job) else job for job in found]

    async def heartbeat(
        self, owner: str, jobs: frozenset[str], load: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Any]]:
        """Note that the owner still works, and at which jobs: those it never lists are lost.

        Return the newest loads of the other owners, of those that still send them.
        """
        now = self._note_call()
        self._heartbeats[owner] = _Heartbeat(now, jobs)
        self._loads[owner] = (now, load)
        self._loads = {
            id: (sent, kept) for id, (sent, kept) in self._loads.items() if now - sent <= LOAD_TTL
        }
        return [kept for id, (_, kept) in self._loads.items() if id != owner]

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """Take the cost from the caller's bucket and return 0, or return the seconds to wait."""
        now = self._note_call()
        self._rate_limit = limit
        bucket = self._buckets.get(caller)
        self._buckets[caller], wait = consume(limit, bucket, cost, now)
        return wait

    async def use(self, caller: str, cost: float, quota: float) -> float:
        """Add to what the caller has used today, and return 0.

        Or, if the sum would be above the quota, return the seconds until tomorrow.
        """
        now = self._note_call()
        is_added = await self._store.write(
            lambda store: store.use(caller, day_of(now), cost, quota)
        )
        return 0.0 if is_added else seconds_left_of_day(now)

    async def accept_terms(self, caller: str, terms: str) -> None:
        """Keep that the caller has accepted the terms with this digest."""
        now = self._note_call()
        await self._store.write(lambda store: store.accept_terms(caller, terms, now))

    async def accepted_terms(self, caller: str) -> str | None:
        """Return the digest of the terms that the caller accepted last."""
        self._note_call()
        return await self._store.read(lambda store: store.accepted_terms(caller))

    async def set_option(self, caller: str, name: str, value: str) -> None:
        """Keep what the caller has set for its own requests."""
        now = self._note_call()
        await self._store.write(lambda store: store.set_option(caller, name, value, now))

    async def option(self, caller: str, name: str) -> str | None:
        """Return what the caller has set, and keep it for longer; None without it."""
        return await used_option(self._store, caller, name, self._note_call())

    async def secret(self, name: str) -> bytes:
        """Return the secret of a name, made at random when it is first asked for."""
        self._note_call()
        fresh = secrets.token_bytes(32)
        return await self._store.write(lambda store: store.secret(name, fresh))

    async def take_webhooks(self, url: str, limit: int) -> DueWebhooks:
        """Return the webhooks of a receiver that the caller is to try now, at most so many."""
        now = self._note_call()
        return await self._store.write(lambda store: store.take_webhooks(url, limit, now))

    async def settle_webhook(self, id: str, retry_in: float | None) -> None:
        """Keep that a webhook is to be tried again after some seconds; None: never."""
        now = self._note_call()
        due = None if retry_in is None else now + retry_in
        await self._store.write(lambda store: store.settle_webhook(id, due))

    async def note_warm_up(self, replica: str, warm_up: WarmUp) -> None:
        """Take note of how far a replica is that starts, for `health`."""
        self._warm_ups.update(replica, warm_up, self._note_call())

    async def health(self) -> LedgerHealth:
        """Return what is wrong with the store, and what the operator should know."""
        warm_ups = self._warm_ups.newest(self._clock())
        return LedgerHealth(self._store.problem, self._store.notice, warm_ups)

    async def check_health(self) -> None:
        """Look after the store. Serve calls this every second, and replaces a process that hangs.

        A store that is slow or does not work is no reason: another process would find the same
        disk.
        """
        if self._last_call is None:
            self._last_call = time.monotonic()
        self._note_call()
        upkeep = self._upkeep or asyncio.create_task(self._look_after(), context=Context())
        self._upkeep = upkeep
        await asyncio.wait([upkeep], timeout=_UPKEEP_WAIT)
        if upkeep.done():
            self._upkeep = None if self._upkeep is upkeep else self._upkeep
            upkeep.result()

    def close(self) -> None:
        """Give up the store, so that another process may open it."""
        self._store.close()

    async def _look_after(self) -> None:
        await self._store.maintain()
        await self._clean_up()

    async def _give_up(self, id: str, owner: str, now: float) -> bool:
        """Keep that the owner does not work at the job any more; return False if it is another."""
        job = await self._store.read(lambda store: store.read(id))
        if job is None or job.owner != owner or job.state is not JobState.RUNNING:
            return False
        await self._store.write(lambda store: store.abandon([job.as_running], now))
        return True

    async def _read(self, id: str) -> Job | None:
        job = await self._store.read(lambda store: store.read(id))
        if job is None:
            self._store.raise_fault()  # it may be missing because it could not be written
            return None
        return abandoned(job) if self._is_lost_job(job) else job

    def _is_lost_job(self, job: Job) -> bool:
        return job.state is JobState.RUNNING and self._is_lost(job.as_running)

    def _is_lost(self, job: RunningJob) -> bool:
        """Return whether nobody works at a job that runs as far as the store knows.

        Its owner has sent no heartbeat for a lease, counted from the ledger's own start, or never
        lists the job: the response to its claim, or its end, did not arrive.
        """
        now = self._clock()
        beat = self._heartbeats.get(job.owner)
        if now - max(beat.time if beat else 0.0, self._started) > LEASE:
            return True
        listed = beat.jobs if beat else None
        return listed is not None and job.id not in listed and now - job.created > DISOWNED_AFTER

    def _wake(self, id: str) -> None:
        if event := self._end_events.pop(id, None):
            event.set()

    def _note_call(self) -> float:
        """Return the time. After a pause of this process, every owner has a new lease."""
        if self._last_call is not None:
            now = time.monotonic()
            if now - self._last_call > _PAUSE:
                self._started = self._clock()
            self._last_call = now
        return self._clock()

    async def _clean_up(self) -> None:
        """Keep that lost jobs have ended, and delete what is too old; each once in a while."""
        now = self._clock()
        with suppress(LedgerFault):  # the next call that needs the store says so
            if now - self._swept >= _SWEEP_INTERVAL:
                self._swept = now
                running = await self._store.read(lambda store: store.running())
                if lost := [job for job in running if self._is_lost(job)]:
                    await self._store.write(lambda store: store.abandon(lost, now))
                    for job in lost:
                        self._wake(job.id)
            if now - self._cleaned_up >= _CLEANUP_INTERVAL:
                self._cleaned_up = now
                self._forget(now)
                await self._store.write(lambda store: store.delete_old(now))
                known = set(self._end_events)  # of jobs that may come while these are read
                kept = {job.id for job in await self._store.read(lambda store: store.running())}
                for id in known - kept:
                    self._wake(id)

    def _forget(self, now: float) -> None:
        """Forget owners that are long dead, and buckets that are full."""
        self._heartbeats = {
            owner: beat for owner, beat in self._heartbeats.items() if now - beat.time < MAX_JOB_AGE
        }
        if limit := self._rate_limit:
            self._buckets = {
                caller: bucket
                for caller, bucket in self._buckets.items()
                if not is_full(limit, bucket, now)
            }
