"""The job service: every request for images becomes a job, is run, and is remembered.

No HTTP and no Ray: the maker of images and the ledger are handed in. A response never waits for
the ledger, except where only the ledger can answer: for an idempotency key, a job by its id, and
the terms. As in `JobRuns`, all tasks begin with an empty context.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import Context
from functools import partial
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.errors import LedgerAway
from serve_app.core.service.info import HealthStatus, LedgerHealth, ServiceInfo
from serve_app.core.service.job_errors import JobCancelled, JobFailed, JobNotFound, result_of
from serve_app.core.service.job_events import JobDone, JobEvent, JobStarted, last_result
from serve_app.core.service.jobs import (
    Job,
    JobFilter,
    JobResult,
    JobState,
)
from serve_app.core.service.moderation import PromptFilter, check_prompts
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.claimed_jobs import ClaimedJobs
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import image_tasks
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.job_runs import JobRuns
from serve_app.ingress.job_spool import JobSpool
from serve_app.ingress.job_views import JobViews, ViewEverywhere
from serve_app.ingress.ledger_outbox import LINGER_S
from serve_app.ingress.request_context import RequestContext
from serve_app.ingress.terms_gate import TermsGate

_CANCEL_TIMEOUT_S = 2.0  # that a cancelled job may take to end
_ABANDONED = 7  # jobs of a caller that may hide one which runs
_SETTLE_S = 4 * LINGER_S  # in which the ledger hears of a job that has begun or ended elsewhere

NO_SUCH_JOB = "you have no job with this id; results are kept for ten minutes"


class JobService:
    """The jobs of one ingress process.

    `cancel_everywhere` cancels a job in whichever process runs it, and `view_everywhere` asks it
    for its events; without them there is one process.
    `daily_quotas`, in megapixel-steps, and `caller_weights` are by name; other callers have no
    quota and a weight of 1. `spool` is where a stop keeps what it does not finish; without it that
    is lost. `on_webhook` is called with a receiver for whom the ledger has news.
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
        view_everywhere: ViewEverywhere | None = None,
        spool: JobSpool | None = None,
        on_webhook: Callable[[str], None] = lambda url: None,
    ) -> None:
        self.info = info
        self.terms = TermsGate(ledger, info)
        self._maker = maker
        self.ledger = self._ledger = ledger
        self._prompt_filter = prompt_filter
        self._cancel_everywhere = cancel_everywhere or self._cancel_here
        self._spool = spool
        self._runs = JobRuns(
            maker, ledger, rate_limit, daily_quotas, caller_weights, spool, on_webhook
        )
        self.views = JobViews(self._runs, ledger, view_everywhere)
        self._claimed = ClaimedJobs(ledger, self._runs, self.views, spool, self._check)
        self._resuming: asyncio.Task[None] | None = None
        self._detached: set[str] = set()  # jobs, until the call that began them ends

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

        Closing the stream cancels the job, unless it has an idempotency key or is detached: then
        the job is finished, for a call that comes later.
        """
        await self._check(generation, context.caller)
        feed, id = JobFeed(), ""
        if context.key is not None:
            task = asyncio.create_task(
                self._claimed.run(generation, context, feed), context=Context()
            )
            self._runs.add_claim(task)
        else:
            job = self._runs.new_job(context.caller, context.webhook)
            id = job.id
            tasks = image_tasks(job, self._runs.caller(job.caller), generation, context.arrived)
            task = self._runs.begin(JobRun(job, generation, tasks, feed))
        task.add_done_callback(lambda _: feed.close())
        if context.hold_images is not None:
            give_back = context.hold_images()
            task.add_done_callback(lambda _: give_back())
        try:
            reading = feed.read(views=context.views, follows=context.follows)
            async with aclosing(reading) as events:
                async for event in events:
                    yield event
            if task.cancelled():
                raise JobCancelled("the job was cancelled")
            yield JobDone(task.result())
        finally:
            is_detached = context.is_detached or id in self._detached
            self._detached.discard(id)
            if context.key is None and not is_detached and not task.done():
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

    async def linked_result(self, id: str) -> JobResult:
        """Return the result of a job, whoever's it is: a link says that it may be read.

        Raises `JobNotFound`, and what the job ended with.
        """
        await self._runs.outbox.wait_for(id, _CANCEL_TIMEOUT_S)
        job = await self._find(id)
        if job is None or (result := result_of(job)) is None:
            raise JobNotFound(NO_SUCH_JOB)
        return result

    async def is_kept(self, id: str) -> bool:
        """Return whether the ledger has the result of a job of this process. Raises `LedgerAway`.

        It may have been too full for it.
        """
        await self._runs.outbox.wait_for(id, _CANCEL_TIMEOUT_S)
        return await self._ledger.has_result(id)

    async def find(self, wanted: JobFilter) -> Sequence[Job]:
        """Return jobs of a caller, newest first, without their results."""
        return await self._ledger.find(wanted)

    async def newest_running(self, caller: str) -> Job | None:
        """Return the caller's newest job that runs, in whichever process; None without one.

        The ledger hears of another process's a moment after it began, and of its end; while it is
        away, there are the jobs of this process alone.
        """
        running = JobFilter(caller, JobState.RUNNING, limit=_ABANDONED + 1)
        found: list[Job | None] = [self._runs.newest(caller)]
        with suppress(LedgerAway):
            found += await self._ledger.find(running)
        known = [job for job in found if job is not None and not job.is_abandoned]
        return max(known, key=lambda job: job.place, default=None)

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

    async def watch(
        self, id: str, caller: str, *, views: bool = True
    ) -> AsyncGenerator[JobEvent, None]:
        """Stream a job's events from its present state on, and at last `JobDone`.

        Whichever process works at it. Without `views` there is progress alone, and no previews are
        made. Closing the stream changes nothing for the job. Raises `JobNotFound`, and what the
        job ended with.
        """
        job = await self.get(id, caller)
        yield JobStarted(id)
        while not job.has_ended:
            async with aclosing(self.views.events(id, watches=views)) as events:
                async for event in events:
                    if not isinstance(event, JobStarted):
                        yield event
            known = await self._ledger.get(id, 0)
            if known is None:
                raise JobNotFound(NO_SUCH_JOB)
            job = known
            if job.is_abandoned:
                break
        if job.error is not None:
            raise JobFailed(job.error.code, job.error.message, is_final=job.error.final)
        if (result := result_of(job)) is None:
            raise JobNotFound("the job's images are not kept any more")
        yield JobDone(result)

    async def cancel(self, id: str, caller: str) -> Job:
        """Cancel the caller's job if it is running, and return it. Raises `JobNotFound`.

        One that the ledger knows to run takes no more steps while news of it may linger elsewhere.
        """
        job = await self._ledger.get(id, 0)
        if job is None or job.caller != caller or job.state is not JobState.RUNNING:
            job = await self.get(id, caller)
        if job.state is JobState.RUNNING:
            await self._cancel_everywhere(id)
            job = await self._ledger.get(id, _CANCEL_TIMEOUT_S) or job
        return job

    def detach(self, id: str) -> None:
        """Let a job go on when the call ends that began it; to be called while it is open."""
        self._detached.add(id)

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
            work = self._spool.finish_all(self._claimed.finish_spooled, is_ready)
            self._resuming = asyncio.create_task(work, context=Context())

    async def _check(self, generation: GenerationJob, caller: str) -> None:
        """Raise what refuses the request, whoever runs it: `SafetyBlock`, `TermsNotAccepted`."""
        texts = (text for image in generation.images for text in image.spec.prompt_texts)
        check_prompts(self._prompt_filter, texts)
        await self.terms.check(caller)

    async def _is_ready(self, is_retiring: Callable[[], bool]) -> bool:
        health = await self._maker.health()
        can_run = health.status in (HealthStatus.READY, HealthStatus.DEGRADED)
        return can_run and not is_retiring()

    async def _cancel_here(self, id: str) -> None:
        self.cancel_here(id)
