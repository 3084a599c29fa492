"""The job service: every request for images becomes a job, is run, and is remembered.

No HTTP and no Ray: the maker of images and the ledger are handed in. A response never waits for
the ledger, except where only the ledger can answer: for an idempotency key, a job by its id, and
the terms.

When a client disconnects, Ray and Serve cancel every remote call that was made in the context of
its request, by whichever task. A job may be finished for a later call, and the ledger's writes are
of several jobs, so all tasks here begin with an empty context.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing, nullcontext, suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import uuid4

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission_control import EXCHANGE_INTERVAL_S
from serve_app.core.errors import LedgerAway, RateLimited, ServiceError
from serve_app.core.service.events import JobDone, JobEvent, JobStarted, last_result
from serve_app.core.service.info import LedgerHealth, ServiceInfo
from serve_app.core.service.job_errors import JobCancelled, JobFailed, JobNotFound
from serve_app.core.service.jobs import IdempotencyClaim, Job, JobError, JobResult, JobState
from serve_app.core.service.moderation import PromptFilter, check_prompts
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.errors import error_response
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.http_errors import IdempotencyConflict
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import image_tasks, make_result
from serve_app.ingress.ledger_outbox import LedgerOutbox
from serve_app.ingress.quota import Quota
from serve_app.ingress.terms_gate import TermsGate

HEARTBEAT_INTERVAL_S = EXCHANGE_INTERVAL_S
_JOIN_TIMEOUT_S = 20.0  # of one call that waits for the end of another process's job
_CANCEL_TIMEOUT_S = 2.0  # that a cancelled job may take to end


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who sent a request to which route, and when; `key` and `fingerprint` make it idempotent.

    `arrived` is a time of the event loop, from which its deadline counts; None for now.
    """

    caller: str
    route: str
    key: str | None = None
    fingerprint: str = ""  # a digest of the body
    arrived: float | None = None


NO_SUCH_JOB = "you have no job with this id; results are kept for ten minutes"


class JobService:
    """The jobs of one ingress process.

    `cancel_everywhere` cancels a job in whichever process runs it; without it there is one process.
    `caller_weights` are by name; other callers have a weight of 1.
    """

    def __init__(
        self,
        maker: Maker,
        ledger: Ledger,
        info: ServiceInfo,
        *,
        prompt_filter: PromptFilter | None = None,
        rate_limit: RateLimit | None = None,
        caller_weights: Mapping[str, float] | None = None,
        cancel_everywhere: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        self.info = info
        self.terms = TermsGate(ledger, info)
        self._maker = maker
        self._ledger = ledger
        self._outbox = LedgerOutbox()
        self._quota = Quota(ledger, rate_limit)
        self._caller_weights = caller_weights or {}
        self._prompt_filter = prompt_filter
        self._cancel_everywhere = cancel_everywhere or self._cancel_here
        self._owner = uuid4().hex
        self._running: dict[str, asyncio.Task[JobResult]] = {}
        self._claims: set[asyncio.Task[JobResult]] = set()  # requests with an idempotency key
        self._heartbeats: asyncio.Task[None] | None = None

    async def run(self, generation: GenerationJob, context: RequestContext) -> JobResult:
        """Return a job's images: the end of its `stream`. Raises the named errors of the domain.

        Cancelling the call cancels a job without an idempotency key.
        """
        return await last_result(self.stream(generation, context))

    async def stream(
        self, generation: GenerationJob, context: RequestContext
    ) -> AsyncGenerator[JobEvent, None]:
        """Run a job: stream its events, from `JobStarted` to `JobDone`, and raise named errors.

        The events of a job's images reach only the call that runs the job, and not another one with
        the same idempotency key. Closing the stream cancels the job, unless it has such a key: then
        the job is finished, for a call that comes later.
        """
        texts = (text for image in generation.images for text in image.spec.prompt_texts)
        check_prompts(self._prompt_filter, texts)
        await self.terms.check(context.caller)
        feed = JobFeed()
        if context.key is not None:
            task = asyncio.create_task(self._run_once(generation, context, feed), context=Context())
            self._claims.add(task)
            task.add_done_callback(self._claims.discard)
            task.add_done_callback(_retrieve)
        else:
            # A job that is refused leaves no trace in the ledger: there may be many.
            job = self._new_job(context.caller)
            tasks = self._tasks(job, generation, context)
            admission = ExitStack()
            admission.enter_context(self._maker.admit(tasks))
            self._outbox.put(job.id, partial(self._ledger.create, job, None))
            task = self._start(job, self._run(job, generation, tasks, feed))
            task.add_done_callback(lambda _: admission.close())
        task.add_done_callback(lambda _: feed.close())
        try:
            async with aclosing(feed.read()) as events:
                async for event in events:
                    yield event
            if task.cancelled():
                raise JobCancelled("the job was cancelled")
            yield JobDone(task.result())
        finally:
            if context.key is None and not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def ledger_health(self) -> LedgerHealth:
        """Return what is wrong with the ledger, and what the operator should know about it."""
        return await self._ledger.health()

    async def get(self, id: str, caller: str) -> Job:
        """Return the caller's job. Raises `JobNotFound`, also for another caller's job."""
        await self._outbox.wait_for(id, _CANCEL_TIMEOUT_S)
        job = await self._ledger.get(id, 0)
        if job is None or job.caller != caller:
            raise JobNotFound(NO_SUCH_JOB)
        return job

    async def cancel(self, id: str, caller: str) -> Job:
        """Cancel the caller's job if it is running, and return it. Raises `JobNotFound`."""
        job = await self.get(id, caller)
        if job.state is JobState.RUNNING:
            await self._cancel_everywhere(id)
            job = await self._ledger.get(id, _CANCEL_TIMEOUT_S) or job
        return job

    def stop(self, id: str) -> None:
        """Cancel the job if this process runs it."""
        if task := self._running.get(id):
            task.cancel()

    async def drain(self) -> None:
        """Return when all jobs of this process have ended, and the ledger has their results."""
        while tasks := [*self._claims, *self._running.values()]:
            await asyncio.wait(tasks)
        await self._outbox.flush()

    def _new_job(self, caller: str) -> Job:
        return Job(uuid4().hex, caller, self._owner, time.time())

    def _tasks(
        self,
        job: Job,
        generation: GenerationJob,
        context: RequestContext,
        *,
        is_retaken: bool = False,
    ) -> list[ImageTask]:
        caller = Caller(job.caller, self._caller_weights.get(job.caller, 1.0))
        return image_tasks(job, caller, generation, context.arrived, is_retaken=is_retaken)

    def _start(self, job: Job, run: Coroutine[Any, Any, JobResult]) -> asyncio.Task[JobResult]:
        task = asyncio.create_task(run, context=Context())
        self._running[job.id] = task
        task.add_done_callback(partial(self._forget, job))
        task.add_done_callback(_retrieve)
        self._keep_alive()
        return task

    def _keep_alive(self) -> None:
        """Send heartbeats for as long as this process works, or waits for a job's end."""
        if self._heartbeats is None or self._heartbeats.done():
            self._heartbeats = asyncio.create_task(self._send_heartbeats(), context=Context())

    async def _run_once(
        self, generation: GenerationJob, context: RequestContext, feed: JobFeed
    ) -> JobResult:
        """Return the result of the one job of an idempotency key, whichever process runs it."""
        text = f"{context.caller}\n{context.route}\n{context.key}"
        scope = sha256(text.encode()).hexdigest()
        claim = IdempotencyClaim(scope, context.fingerprint, generation.seed)
        job = self._new_job(context.caller)
        self._keep_alive()
        while True:
            claimed = await self._ledger.create(job, claim)
            if claimed.job is None:
                raise IdempotencyConflict("this Idempotency-Key was used with another body")
            if claimed.is_owner:
                is_retaken = claimed.job != job.id
                job = replace(job, id=claimed.job)
                generation = generation.with_seed(claimed.seed)
                tasks = self._tasks(job, generation, context, is_retaken=is_retaken)
                run = self._run(job, generation, tasks, feed, admit=True)
                return await self._start(job, run)
            feed.put(JobStarted(claimed.job))
            if (result := await self._join(claimed.job)) is not None:
                return result

    async def _join(self, id: str) -> JobResult | None:
        """Return the result of a job that another call runs; None if it must be run again."""
        while job := await self._ledger.get(id, _JOIN_TIMEOUT_S):
            if job.state is JobState.CANCELLED:
                raise JobCancelled("the job was cancelled")
            if job.error and not (job.is_abandoned or job.error.code == RateLimited.code):
                raise JobFailed(job.error.code, job.error.message, is_final=job.error.final)
            if job.state is not JobState.RUNNING:
                return job.result
        return None

    def _forget(self, job: Job, task: asyncio.Task[JobResult]) -> None:
        self._running.pop(job.id, None)
        if task.cancelled():  # before its first step, or else `_run` would have reported its end
            finish = partial(self._finish, job, 0.0, JobState.CANCELLED, None, None)
            self._outbox.put(job.id, finish)

    async def _run(
        self,
        job: Job,
        generation: GenerationJob,
        tasks: Sequence[ImageTask],
        feed: JobFeed,
        *,
        admit: bool = False,
    ) -> JobResult:
        """Return the job's result; the outbox reports its end to the ledger.

        `admit`: the tasks are not admitted yet, since the ledger had to be asked first whether the
        job runs already.
        """
        state, error, result = JobState.CANCELLED, None, None
        charged = refund = 0.0
        try:
            with self._maker.admit(tasks) if admit else nullcontext():
                charged = await self._quota.charge(job.caller, generation.cost)
                feed.put(JobStarted(job.id))
                result = await make_result(self._maker, job, tasks, generation, feed.put)
            state = JobState.SUCCEEDED
            return result
        except asyncio.CancelledError:
            raise JobCancelled("the job was cancelled") from None
        except Exception as failure:
            response = error_response(failure, 0)
            state, error = (
                JobState.FAILED,
                JobError(response.code, response.message, response.is_final),
            )
            if isinstance(failure, ServiceError):
                refund = charged
            raise
        finally:
            size = sum(map(len, result.pngs)) if result else 0
            kept = result if self._outbox.has_capacity(size) else None
            finish = partial(self._finish, job, refund, state, error, kept)
            self._outbox.put(job.id, finish, size if kept else 0)

    async def _finish(
        self,
        job: Job,
        refund: float,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """Remember how the job ended, and give back what a fault of the service has cost."""
        await self._ledger.finish(job.id, self._owner, state, error, result)
        with suppress(LedgerAway):  # a lost refund is no reason to drop other jobs' writes
            await self._quota.refund(job.caller, refund)

    @property
    def _is_working(self) -> bool:
        return bool(self._running or self._claims) or not self._outbox.is_empty

    async def _send_heartbeats(self) -> None:
        """Send heartbeats while there is work, and one more, so that no old load is believed."""
        is_working = True
        while is_working:
            is_working = self._is_working
            with suppress(LedgerAway):
                jobs = frozenset(self._running) | self._outbox.jobs
                load = self._maker.load()
                self._maker.update_others(await self._ledger.heartbeat(self._owner, jobs, load))
            is_working |= self._is_working  # what came during that call
            if is_working:
                await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _cancel_here(self, id: str) -> None:
        self.stop(id)


def _retrieve(task: asyncio.Task[JobResult]) -> None:
    """Mark a task's error as seen: the caller who waited for it may have left."""
    if not task.cancelled():
        task.exception()
