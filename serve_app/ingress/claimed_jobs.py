"""`ClaimedJobs`: jobs with an idempotency key, made once whichever process works at them.

No HTTP and no Ray. As in `JobRuns`, all tasks begin with an empty context.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from dataclasses import replace
from functools import partial
from hashlib import sha256

from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.job_errors import result_of
from serve_app.core.service.job_events import JobStarted
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState
from serve_app.ingress.contracts import Ledger
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.http_errors import IdempotencyConflict
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import image_tasks
from serve_app.ingress.job_run import JobRun
from serve_app.ingress.job_runs import JobRuns
from serve_app.ingress.job_spool import JobSpool, TakenJob
from serve_app.ingress.job_views import JobViews
from serve_app.ingress.request_context import RequestContext

JOIN_TIMEOUT_S = 20.0  # of one call that waits for the end of another process's job

Check = Callable[[GenerationJob, str], Awaitable[None]]  # raises what refuses a caller's job


class ClaimedJobs:
    """The jobs of one process that others may ask for by their claims, or have left unfinished."""

    def __init__(
        self,
        ledger: Ledger,
        runs: JobRuns,
        views: JobViews,
        spool: JobSpool | None,
        check: Check,
    ) -> None:
        self._ledger = ledger
        self._runs = runs
        self._views = views
        self._spool = spool
        self._check = check

    async def run(
        self, generation: GenerationJob, context: RequestContext, feed: JobFeed
    ) -> JobResult:
        """Return the result of the one job of an idempotency key, whichever process runs it."""
        text = f"{context.caller}\n{context.route}\n{context.key}"
        scope = sha256(text.encode()).hexdigest()
        claim = IdempotencyClaim(scope, context.fingerprint, generation.seed)
        job = self._runs.new_job(context.caller, context.webhook)
        while True:
            claimed = await self._ledger.create(job, claim)
            if claimed.job is None:
                raise IdempotencyConflict("this Idempotency-Key was used with another body")
            if claimed.is_owner:
                task = self._runs.task(claimed.job)  # whose heartbeats did not arrive
                is_running = task is not None
                if task is None:
                    taken = await self._spool.take(claimed.job) if self._spool else None
                    task = self._start(
                        job, claim, claimed, generation, taken, feed, arrived=context.arrived
                    )
                try:
                    async with self._relayed(claimed.job if is_running else None, feed):
                        return await asyncio.shield(task)
                except TakenOver:
                    continue  # another process has it by now: join that one
            async with self._relayed(claimed.job, feed):
                if (result := await self._join(claimed.job)) is not None:
                    return result

    async def finish_spooled(self, taken: TakenJob) -> None:
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
        job = self._runs.new_job(spooled.caller, spooled.webhook)
        claimed = await self._ledger.create(job, spooled.claim)
        if claimed.is_owner and self._runs.task(claimed.job or job.id) is None:
            generation = replace(taken.generation, timeout_s=None)
            feed = JobFeed()
            task = self._start(job, spooled.claim, claimed, generation, taken, feed)
            await asyncio.wait([task])
            feed.close()
            await self._runs.outbox.wait_for(claimed.job or job.id, JOIN_TIMEOUT_S)
        elif claimed.job is None:  # the key is used for something else by now
            taken.file.delete()
        else:  # the key may stand for another job
            known = await self._ledger.get(claimed.job, 0)
            if known is not None and known.has_ended:
                taken.file.delete()

    async def _join(self, id: str) -> JobResult | None:
        """Return the result of a job that another call runs; None if it must be run again."""
        while job := await self._ledger.get(id, JOIN_TIMEOUT_S):
            if job.state is not JobState.RUNNING:
                return result_of(job)
        return None

    @asynccontextmanager
    async def _relayed(self, id: str | None, feed: JobFeed) -> AsyncIterator[None]:
        """Pass on the events of a job that another call runs, if there is one, to a feed."""
        if id is None:
            yield
            return
        feed.put(JobStarted(id))
        relay = asyncio.create_task(self._relay(id, feed), context=Context())
        try:
            yield
        finally:
            relay.cancel()

    async def _relay(self, id: str, feed: JobFeed) -> None:
        """Pass the events of a job that another call runs on to a feed that somebody views."""
        if feed.is_viewed:
            async with aclosing(self._views.events(id)) as events:
                async for event in events:
                    feed.put(event)

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
