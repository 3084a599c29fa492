"""The job service: every request for images becomes a job, is run, and is remembered.

No HTTP and no Ray: the maker of images and the ledger are handed in. A response never waits for
the ledger, except where only the ledger can answer: for an idempotency key, a job by its id, and
the terms. As in `JobRuns`, all tasks begin with an empty context.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.errors import RateLimited
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import JobDone, JobEvent, JobStarted, last_result
from serve_app.core.service.info import HealthStatus, LedgerHealth, ServiceInfo
from serve_app.core.service.job_errors import JobCancelled, JobFailed, JobNotFound
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobResult,
    JobState,
)
from serve_app.core.service.moderation import PromptFilter, check_prompts
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.http_errors import IdempotencyConflict
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import image_tasks
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.job_runs import JobRuns
from serve_app.ingress.job_spool import JobSpool, TakenJob
from serve_app.ingress.ledger_outbox import LINGER_S
from serve_app.ingress.terms_gate import TermsGate

_JOIN_TIMEOUT_S = 20.0  # of one call that waits for the end of another process's job
_CANCEL_TIMEOUT_S = 2.0  # that a cancelled job may take to end
_SETTLE_S = 4 * LINGER_S  # in which the ledger hears of a job that has begun or ended elsewhere


# Keeps the bytes of a request's images counted beyond the request; returns what gives them back.
HoldImages = Callable[[], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who sent a request to which route, and when; `key` and `fingerprint` make it idempotent.

    `arrived` is a time of the event loop, from which its deadline counts; None for now.
    `hold_images` is called once a job needs the request's images.
    """

    caller: str
    route: str
    key: str | None = None
    fingerprint: str = ""  # a digest of the body
    arrived: float | None = None
    hold_images: HoldImages | None = None


NO_SUCH_JOB = "you have no job with this id; results are kept for ten minutes"


class JobService:
    """The jobs of one ingress process.

    `cancel_everywhere` cancels a job in whichever process runs it; without it there is one process.
    `daily_quotas`, in megapixel-steps, and `caller_weights` are by name; other callers have no
    quota and a weight of 1. `spool` is where a stop keeps what it does not finish; without it that
    is lost.
    """

    def __init__(
        self,
        maker: Maker,
        ledger: Ledger,
        info: ServiceInfo,
        *,
        prompt_filter: PromptFilter | None = None,
        rate_limit: RateLimit | None = None,
        daily_quotas: Mapping[str, float] | None = None,
        caller_weights: Mapping[str, float] | None = None,
        cancel_everywhere: Callable[[str], Awaitable[Any]] | None = None,
        spool: JobSpool | None = None,
    ) -> None:
        self.info = info
        self.terms = TermsGate(ledger, info)
        self._maker = maker
        self._ledger = ledger
        self._prompt_filter = prompt_filter
        self._cancel_everywhere = cancel_everywhere or self._cancel_here
        self._spool = spool
        self._runs = JobRuns(maker, ledger, rate_limit, daily_quotas, caller_weights, spool)
        self._resuming: asyncio.Task[None] | None = None

    def caller(self, name: str) -> Caller:
        """Return a caller with its weight."""
        return self._runs.caller(name)

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
        await self._check(generation, context.caller)
        feed = JobFeed()
        if context.key is not None:
            task = asyncio.create_task(self._run_once(generation, context, feed), context=Context())
            self._runs.add_claim(task)
        else:
            job = self._runs.new_job(context.caller)
            tasks = image_tasks(job, self._runs.caller(job.caller), generation, context.arrived)
            task = self._runs.begin(JobRun(job, generation, tasks, feed))
        task.add_done_callback(lambda _: feed.close())
        if context.hold_images is not None:
            give_back = context.hold_images()
            task.add_done_callback(lambda _: give_back())
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
        await self._runs.outbox.wait_for(id, _CANCEL_TIMEOUT_S)
        job = await self._find(id)
        if job is None or job.caller != caller:
            raise JobNotFound(NO_SUCH_JOB)
        return job

    async def _find(self, id: str) -> Job | None:
        """Return the job as the ledger will know it in a moment.

        What another process has to tell of it may still linger there.
        """
        is_own = self._runs.task(id) is not None
        job = await self._ledger.get(id, 0 if is_own else _SETTLE_S)
        if job is None:
            await asyncio.sleep(_SETTLE_S)
            job = await self._ledger.get(id, 0)
        return job

    async def cancel(self, id: str, caller: str) -> Job:
        """Cancel the caller's job if it is running, and return it. Raises `JobNotFound`."""
        job = await self.get(id, caller)
        if job.state is JobState.RUNNING:
            await self._cancel_everywhere(id)
            job = await self._ledger.get(id, _CANCEL_TIMEOUT_S) or job
        return job

    def cancel_here(self, id: str) -> None:
        """Cancel the job if this process runs it."""
        self._runs.cancel(id)

    async def drain(self) -> None:
        """Return when all jobs of this process have ended, and the ledger has their results."""
        await self._runs.drain()

    async def save(self) -> None:
        """Keep in the spool how far the jobs are, in case this process is ended before they are."""
        await self._runs.save()

    async def stop(self) -> Unfinished:
        """End all jobs of this process within seconds, and keep in the spool what can be kept."""
        if self._resuming is not None:
            self._resuming.cancel()
        return await self._runs.stop()

    def resume(self, is_retiring: Callable[[], bool] = lambda: False) -> None:
        """Finish what other processes have left in the spool, beside everything else.

        Nothing is taken up while the process is retiring.
        """
        if self._spool is not None:
            is_ready = partial(self._is_ready, is_retiring)
            work = self._spool.finish_all(self._finish_spooled, is_ready)
            self._resuming = asyncio.create_task(work, context=Context())

    async def _check(self, generation: GenerationJob, caller: str) -> None:
        """Raise what refuses the request, whoever runs it: `SafetyBlock`, `TermsNotAccepted`."""
        texts = (text for image in generation.images for text in image.spec.prompt_texts)
        check_prompts(self._prompt_filter, texts)
        await self.terms.check(caller)

    async def _run_once(
        self, generation: GenerationJob, context: RequestContext, feed: JobFeed
    ) -> JobResult:
        """Return the result of the one job of an idempotency key, whichever process runs it."""
        text = f"{context.caller}\n{context.route}\n{context.key}"
        scope = sha256(text.encode()).hexdigest()
        claim = IdempotencyClaim(scope, context.fingerprint, generation.seed)
        job = self._runs.new_job(context.caller)
        while True:
            claimed = await self._ledger.create(job, claim)
            if claimed.job is None:
                raise IdempotencyConflict("this Idempotency-Key was used with another body")
            if claimed.is_owner:
                task = self._runs.task(claimed.job)  # whose heartbeats did not arrive
                if task is None:
                    taken = await self._spool.take(claimed.job) if self._spool else None
                    task = self._start(
                        job, claim, claimed, generation, taken, feed, arrived=context.arrived
                    )
                try:
                    return await asyncio.shield(task)
                except TakenOver:
                    continue  # another process has it by now: join that one
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

    def _start(
        self,
        job: Job,
        claim: IdempotencyClaim,
        claimed: ClaimResult,
        generation: GenerationJob,
        taken: TakenJob | None,
        feed: JobFeed,
        *,
        arrived: float | None = None,
    ) -> asyncio.Task[JobResult]:
        """Start the job of a claim that was won: from where the spool has it, if it does."""
        job_id = claimed.job or job.id
        is_retaken, job = job_id != job.id, replace(job, id=job_id)
        if taken is not None:  # what was accepted first, whatever the settings are now
            generation = replace(taken.generation, timeout_s=generation.timeout_s)
        generation = generation.with_seed(claimed.seed)
        confirm = partial(self._runs.confirm, job.id)
        tasks = [
            replace(task, is_retaken=is_retaken, confirm=confirm)
            for task in image_tasks(job, self._runs.caller(job.caller), generation, arrived)
        ]
        if taken is not None:
            tasks = [
                replace(task, resume=snapshot)
                for task, snapshot in zip(tasks, taken.images, strict=True)
            ]
        run = JobRun(job, generation, tasks, feed, replace(claim, seed=claimed.seed))
        if taken is not None:  # the settings may have changed since it was accepted
            check = partial(self._check, generation, job.caller)
            run = replace(run, spooled=taken.job.id, check=check)
        return self._runs.start(run)

    async def _finish_spooled(self, taken: TakenJob) -> None:
        """Finish a job of the spool, unless somebody else works at it or it has ended.

        The ledger is asked for the job first: the claim of one that has failed is gone, and would
        be won again. Raises `LedgerAway`. Its caller has left, and takes its own time limit with
        it.
        """
        spooled = taken.job
        known = await self._ledger.get(spooled.id, 0)
        if known is not None and not known.is_abandoned:
            if known.has_ended:
                taken.file.delete()
            return
        job = self._runs.new_job(spooled.caller)
        claimed = await self._ledger.create(job, spooled.claim)
        if claimed.is_owner and self._runs.task(claimed.job or job.id) is None:
            generation = replace(taken.generation, timeout_s=None)
            task = self._start(job, spooled.claim, claimed, generation, taken, JobFeed())
            await asyncio.wait([task])
            await self._runs.outbox.wait_for(claimed.job or job.id, _JOIN_TIMEOUT_S)
        elif claimed.job is None:  # the key is used for something else by now
            taken.file.delete()
        else:  # the key may stand for another job
            known = await self._ledger.get(claimed.job, 0)
            if known is not None and known.has_ended:
                taken.file.delete()

    async def _is_ready(self, is_retiring: Callable[[], bool]) -> bool:
        health = await self._maker.health()
        can_run = health.status in (HealthStatus.READY, HealthStatus.DEGRADED)
        return can_run and not is_retiring()

    async def _cancel_here(self, id: str) -> None:
        self.cancel_here(id)
