"""`JobRuns`: the jobs that one ingress process works at, from their start until the ledger knows.

No HTTP, no Ray. When a client leaves, Ray and Serve cancel every remote call in the context of its
request. Jobs may outlive that, and so do writes, so all tasks here begin with an empty context.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from contextvars import Context
from functools import partial
from uuid import uuid4

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission_control import EXCHANGE_INTERVAL_S
from serve_app.core.errors import CallerError, Draining, LedgerAway, Overloaded
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.job_errors import JobCancelled
from serve_app.core.service.job_events import JobStarted
from serve_app.core.service.jobs import OWNER_LOST, Job, JobError, JobResult, JobState
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import make_result
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.job_spool import JobSpool
from serve_app.ingress.ledger_outbox import LINGER_S, LedgerOutbox
from serve_app.ingress.quota import Quota

HEARTBEAT_INTERVAL_S = EXCHANGE_INTERVAL_S
_MAX_RETRY_S = 5.0  # between two tries to admit a job that was accepted before the last stop
_CANCEL_S = 1.0  # that jobs may take to end at a stop
_FLUSH_S = 2.0  # that the ledger may take to know of it


class JobRuns:
    """The jobs at which one process works, as the `owner`.

    `daily_quotas` are by the caller's name, in megapixel-steps. `spool` is where a stop keeps those
    that somebody may ask for again. `on_webhook` is called with a receiver who has news.
    """

    def __init__(
        self,
        maker: Maker,
        ledger: Ledger,
        rate_limit: RateLimit | None = None,
        daily_quotas: Mapping[str, float] | None = None,
        caller_weights: Mapping[str, float] | None = None,
        spool: JobSpool | None = None,
        on_webhook: Callable[[str], None] = lambda url: None,
    ) -> None:
        self.outbox = LedgerOutbox()
        self._maker = maker
        self._ledger = ledger
        self._quota = Quota(ledger, rate_limit, daily_quotas)
        self._caller_weights = caller_weights or {}
        self._spool = spool
        self._on_webhook = on_webhook
        self._owner = uuid4().hex
        self._running: dict[str, tuple[JobRun, asyncio.Task[JobResult]]] = {}
        self._claims: set[asyncio.Task[JobResult]] = set()  # requests with an idempotency key
        self._heartbeats: asyncio.Task[None] | None = None
        self._is_stopping = False

    def new_job(self, caller: str, webhook: str | None) -> Job:
        """Return a new job of this process, which the ledger does not know yet."""
        return Job(uuid4().hex, caller, self._owner, time.time(), webhook=webhook)

    def caller(self, name: str) -> Caller:
        """Return a caller with its weight."""
        return Caller(name, self._caller_weights.get(name, 1.0))

    def add_claim(self, task: asyncio.Task[JobResult]) -> None:
        """Take note of a request with an idempotency key, which may become a job."""
        self._claims.add(task)
        task.add_done_callback(self._claims.discard)
        task.add_done_callback(_retrieve)
        self.keep_alive()

    def begin(self, run: JobRun) -> asyncio.Task[JobResult]:
        """Start a job without a claim, which the ledger learns of later.

        Raises what the maker's `admit` raises. A job that is refused leaves no trace in the ledger:
        there may be many.
        """
        admission = ExitStack()
        admission.enter_context(self._maker.admit(run.tasks))
        self.outbox.put(run.job.id, partial(self._ledger.create, run.job, None))
        task = self.start(run)
        task.add_done_callback(lambda _: admission.close())
        return task

    def start(self, run: JobRun) -> asyncio.Task[JobResult]:
        """Start a job that the ledger knows. One with a claim is admitted first."""
        task = asyncio.create_task(self._run(run), context=Context())
        self._running[run.job.id] = run, task
        task.add_done_callback(partial(self._forget, run))
        task.add_done_callback(_retrieve)
        self.keep_alive()
        return task

    def task(self, id: str) -> asyncio.Task[JobResult] | None:
        """Return the task that works at a job, if this process does."""
        return self._running[id][1] if id in self._running else None

    def feed(self, id: str) -> JobFeed | None:
        """Return the events of a job, if this process works at it."""
        return self._running[id][0].feed if id in self._running else None

    def newest(self, caller: str) -> Job | None:
        """Return the newest job of a caller at which this process works."""
        jobs = (run.job for run, _ in self._running.values() if run.job.caller == caller)
        return max(jobs, key=lambda job: job.place, default=None)

    async def confirm(self, id: str) -> None:
        """Return if this process still has a job. Raises `TakenOver` if another one does."""
        with suppress(LedgerAway):
            job = await self._ledger.get(id, 0)
            if job is not None and job.owner != self._owner:
                raise TakenOver("another process works at this job")

    def cancel(self, id: str) -> None:
        """Cancel a job, if this process works at it."""
        if id in self._running:
            self._running[id][1].cancel()

    async def drain(self) -> None:
        """Return when all jobs of this process have ended, and the ledger has their results."""
        while tasks := [*self._claims, *(task for _, task in self._running.values())]:
            await asyncio.wait(tasks)
        await self.outbox.flush()

    async def save(self) -> None:
        """Keep in the spool how far the jobs are, in case this process is ended before they are."""
        if self._spool is None or self._is_stopping:
            return
        runs = [run for run, _ in self._running.values() if run.claim is not None]
        await self._spool.save(runs, self._maker.snapshot)
        ended = frozenset(run.job.id for run in runs) - self._unfinished
        await self._spool.settle(ended, self._has_ended)

    async def stop(self) -> Unfinished:
        """End all jobs within seconds, and keep in the spool those that may be asked for again.

        Their claims stay, so that whoever takes them up has their ids and their seeds.
        """
        self._is_stopping = True
        running = dict(self._running)
        runs, tasks = [run for run, _ in running.values()], [task for _, task in running.values()]
        kept = await self._spool.keep(runs, self._maker.snapshot) if self._spool else frozenset()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self.outbox.flush()
                if self._spool is not None:
                    await self._spool.settle(kept, self._has_ended)
        for run in runs:
            self._release(run.ids)
        unfinished = [id for id, (_, task) in running.items() if not _has_ended(task)]
        spooled = sum(id in kept for id in unfinished)
        return Unfinished(spooled, len(unfinished) - spooled)

    def keep_alive(self) -> None:
        """Send heartbeats for as long as this process works, or waits for a job's end."""
        if self._heartbeats is None or self._heartbeats.done():
            self._heartbeats = asyncio.create_task(self._send_heartbeats(), context=Context())

    def _forget(self, run: JobRun, task: asyncio.Task[JobResult]) -> None:
        del self._running[run.job.id]
        if task.cancelled():  # before its first step, or else `_run` would have reported its end
            state, error = self._interruption()
            self.outbox.put(
                run.job.id, partial(self._finish, run.job, run.ids, 0.0, state, error, None)
            )

    def _interruption(self) -> tuple[JobState, JobError | None]:
        """Return how a job has ended whose task was cancelled."""
        if self._is_stopping:
            return JobState.FAILED, OWNER_LOST
        return JobState.CANCELLED, None

    async def _run(self, run: JobRun) -> JobResult:
        """Return the job's result; the outbox reports its end to the ledger.

        What was charged for images that were not delivered is given back, unless that is the
        caller's doing: a cancelled job, or an error of the request.
        """
        state, error, result = JobState.CANCELLED, None, None
        charged, refund, is_ours = 0.0, 0.0, True
        try:
            await run.check()
            with await self._admit(run):
                if run.is_resumed:  # it was charged when it was accepted
                    charged = run.generation.cost
                else:
                    charged = await self._quota.charge(run.job.caller, run.generation.cost)
                run.feed.put(JobStarted(run.job.id))
                run.connect(self._maker)
                result = await make_result(
                    self._maker, run.job, run.tasks, run.generation, run.feed.put
                )
            state = JobState.SUCCEEDED
            return result
        except asyncio.CancelledError:
            state, error = self._interruption()
            if error is OWNER_LOST:
                if run.claim is None:  # with one, whoever asks again goes on without a new charge
                    refund = charged
                raise Draining("the service was stopped before this was done") from None
            raise JobCancelled("the job was cancelled") from None
        except TakenOver:
            is_ours = False
            raise
        except Exception as failure:
            state, error = JobState.FAILED, run.error(failure)
            if not isinstance(failure, CallerError):
                refund = charged
            raise
        finally:
            if is_ours:
                size = sum(map(len, result.pngs)) if result else 0
                kept = result if self.outbox.has_capacity(size) else None
                # Not the run: its feed has the images, which wait here only if there is room.
                finish = partial(self._finish, run.job, run.ids, refund, state, error, kept)
                self.outbox.put(run.job.id, finish, size if kept else 0)
            else:  # whoever has the job by now may need the file
                self._release(run.ids)

    async def _admit(self, run: JobRun) -> AbstractContextManager[object]:
        """Admit a job that has a claim: the ledger had to be asked first whether it runs already.

        A job of the spool was accepted before, so it is not refused but waits.
        """
        if run.claim is None:
            return nullcontext()
        while True:
            try:
                return self._maker.admit(run.tasks)
            except Overloaded as refusal:
                if run.spooled is None:
                    raise
                await asyncio.sleep(min(refusal.retry_after, _MAX_RETRY_S))

    async def _finish(
        self,
        job: Job,
        ids: frozenset[str],
        refund: float,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """Remember how the job ended, and give the refund back to its caller."""
        await self._ledger.finish(job.id, self._owner, state, error, result)
        if job.webhook is not None:
            self._on_webhook(job.webhook)
        if self._spool is not None and error != OWNER_LOST:
            await self._spool.settle(ids, self._has_ended)
        self._release(ids)
        with suppress(LedgerAway):  # a lost refund is no reason to drop other jobs' writes
            await self._quota.refund(job.caller, refund)

    async def _has_ended(self, id: str) -> bool:
        """Return whether the ledger says that a job has ended, so that its file may be deleted.

        Else the file is kept for another process that has the job by now, which may die too, or for
        one that will take the job up.
        """
        job = await self._ledger.get(id, 0)
        return job is not None and job.has_ended

    def _release(self, ids: frozenset[str]) -> None:
        if self._spool is not None:
            for id in ids:
                self._spool.release(id)

    @property
    def _unfinished(self) -> frozenset[str]:
        """The jobs that are worked at, or whose end the ledger does not know yet."""
        return frozenset(self._running) | self.outbox.jobs

    @property
    def _is_working(self) -> bool:
        return bool(self._running or self._claims) or not self.outbox.is_empty

    async def _send_heartbeats(self) -> None:
        """Send heartbeats while there is work, and one more, so that no old load is believed.

        The first one lingers as the outbox's writes do, so that the job's own calls go first.
        """
        await asyncio.sleep(LINGER_S)
        is_working = True
        while is_working:
            is_working = self._is_working
            with suppress(LedgerAway):
                load = self._maker.load()
                beat = self._ledger.heartbeat(self._owner, self._unfinished, load)
                self._maker.update_others(await beat)
            is_working |= self._is_working  # what came during that call
            if is_working:
                await asyncio.sleep(HEARTBEAT_INTERVAL_S)


def _has_ended(task: asyncio.Task[JobResult]) -> bool:
    """Return whether a job ended by itself, with its images or a named error of its own."""
    if not task.done() or task.cancelled():
        return False
    return not isinstance(task.exception(), Draining)


def _retrieve(task: asyncio.Task[JobResult]) -> None:
    """Mark a task's error as seen: the caller who waited for it may have left."""
    if not task.cancelled():
        task.exception()
