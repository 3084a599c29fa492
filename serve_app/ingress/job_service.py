"""The desk: every order becomes a job, is made, and is remembered.

Knows no HTTP and no Ray: the conductor makes the images, the ledger remembers; both are handed in.
The ledger is off the way of a picture: it is told in the background, and only what can't be
answered without it (a claim, a job by id, the terms) waits for it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import uuid4

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.errors import (
    IdempotencyConflict,
    JobCancelled,
    JobFailed,
    JobNotFound,
    LedgerAway,
    RateLimited,
    SafetyBlock,
    ServiceError,
    TermsNotAccepted,
)
from serve_app.core.service.events import last_image
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.jobs import LOST, IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.moderation import SafetyFilter
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.errors import error_response
from serve_app.ingress.generation import GenerationJob
from serve_app.ingress.png_metadata import embed, infotext

logger = logging.getLogger("aura.jobs")

LEDGER_DELAY = 0.05  # seconds that pictures and answers are ahead of what the ledger hears of them
HEARTBEAT_INTERVAL = 3.0  # seconds between two signs of life to the ledger
_LOOK = 20.0  # seconds that one question for a job's end may stand open
_UNWANTED = 2.0  # seconds that a cancelled job may take to end


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks where, and whether it may ask again: a key and a digest of the body, or neither."""

    caller: str
    route: str
    key: str | None = None
    fingerprint: str = ""


class JobService:
    """The jobs of one ingress process. `words` may refuse prompts, `allowance` bounds callers."""

    def __init__(
        self,
        conductor: Maker,
        ledger: Ledger,
        info: ServiceInfo,
        *,
        prompt_filter: SafetyFilter | None = None,
        rate_limit: RateLimit | None = None,
        cancel_everywhere: Callable[[str], Awaitable[Any]] | None = None,
        ledger_delay: float = LEDGER_DELAY,
    ) -> None:
        self._conductor = conductor
        self._ledger = ledger
        self.info = info
        self._prompt_filter = prompt_filter
        self._rate_limit = rate_limit
        self._cancel_everywhere = (
            cancel_everywhere or self._cancel_local
        )  # tells every ingress process to cancel a job
        self._ledger_delay = ledger_delay
        self._owner = uuid4().hex
        self._running: dict[str, asyncio.Task[JobResult]] = {}
        self._writes: dict[str, asyncio.Task[None]] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._accepted_terms: set[str] = set()  # callers known to have accepted the terms

    async def run(self, generation: GenerationJob, context: RequestContext) -> JobResult:
        """What the order gives. Raises the named errors of the domain.

        Who leaves while it is made cancels it, unless a key promises that it will ask again.
        """
        if self._prompt_filter and any(
            self._prompt_filter.refuses_prompt(p.spec.prompt) for p in generation.images
        ):
            raise SafetyBlock("the safety filter refuses this prompt")
        await self.check_terms(context.caller)
        job = Job(uuid4().hex, context.caller, self._owner, time.time())
        if context.key is not None:
            return await asyncio.shield(
                self._start(job.id, self._claimed(job, generation, context))
            )
        task = self._start(job.id, self._run(job, generation))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise

    async def check_terms(self, caller: str) -> None:
        """Returns when the caller may ask for pictures. Raises `TermsNotAccepted` if not."""
        if not self.info.terms_required or caller in self._accepted_terms:
            return
        if await self._ledger.accepted_terms(caller) != self.info.terms_digest:
            raise TermsNotAccepted(
                "read the models' terms at GET /licenses and accept them: "
                f'POST /licenses {{"accept": true, "terms": "{self.info.terms_digest}"}}'
            )
        self._accepted_terms.add(caller)

    async def get(self, id: str, caller: str) -> Job:
        """The caller's job. Raises `JobNotFound`, also for somebody else's."""
        if write := self._writes.get(id):
            await asyncio.wait([write], timeout=_UNWANTED)
        job = await self._ledger.get(id, 0)
        if job is None:  # or its process has not told of it yet
            await asyncio.sleep(2 * self._ledger_delay)
            job = await self._ledger.get(id, 0)
        if job is None or job.caller != caller:
            raise JobNotFound("you have no job with this id; answers are kept for ten minutes")
        return job

    async def cancel(self, id: str, caller: str) -> Job:
        """The caller's job, which is not worked at any more. Raises `JobNotFound`."""
        job = await self.get(id, caller)
        if job.state is JobState.RUNNING:
            await self._cancel_everywhere(id)
            job = await self._ledger.get(id, _UNWANTED) or job
        return job

    def stop(self, id: str) -> None:
        """The job is cancelled, if it is worked at here."""
        if task := self._running.get(id):
            task.cancel()

    async def accept_terms(self, caller: str, terms: str) -> None:
        """The caller has accepted what is in force. Raises `TermsNotAccepted` for other terms."""
        if terms != self.info.terms_digest:
            raise TermsNotAccepted("these terms are not in force; read them at GET /licenses")
        await self._ledger.accept_terms(caller, terms)

    async def drain(self) -> None:
        """Everything that was worked at here has ended, and the ledger has been told."""
        while pending := [*self._running.values(), *self._writes.values()]:
            await asyncio.wait(pending)

    def _start(self, id: str, work: Coroutine[Any, Any, JobResult]) -> asyncio.Task[JobResult]:
        task = asyncio.create_task(work)
        self._running[id] = task

        def ended(task: asyncio.Task[JobResult]) -> None:
            self._running.pop(id, None)
            if not task.cancelled():
                task.exception()  # taken note of: whoever waited may have left

        task.add_done_callback(ended)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._send_heartbeats())
        return task

    async def _claimed(self, job: Job, order: GenerationJob, asking: RequestContext) -> JobResult:
        """The result of the one job that the key stands for, whoever makes it."""
        scope = sha256(f"{asking.caller}\n{asking.route}\n{asking.key}".encode()).hexdigest()
        while True:
            claim = IdempotencyClaim(scope, asking.fingerprint, order.seed)
            claimed = await self._ledger.create(job, claim)
            if claimed.job is None:
                raise IdempotencyConflict("this Idempotency-Key was used with another body")
            if claimed.is_owner:
                if claimed.job != job.id and (mine := asyncio.current_task()):
                    self._running[claimed.job] = mine  # the name by which it may be cancelled
                job = replace(job, id=claimed.job)
                return await self._run(job, order.with_seed(claimed.seed), opened=True)
            if (result := await self._joined(claimed.job)) is not None:
                return result

    async def _joined(self, id: str) -> JobResult | None:
        """The result of a job that is worked at elsewhere; None when it must be made anew."""
        while job := await self._ledger.get(id, _LOOK):
            if job.state is JobState.CANCELLED:
                raise JobCancelled("the job was cancelled")
            if job.error and job.error != LOST and job.error[0] != "RATE_LIMITED":
                raise JobFailed(*job.error)
            if job.state is not JobState.RUNNING:
                return job.result
        return None

    async def _run(self, job: Job, order: GenerationJob, *, opened: bool = False) -> JobResult:
        """The order's result; the ledger is told of the job in the background, in order."""
        opening = partial(self._ledger.create, job, None)
        begun = None if opened else asyncio.create_task(self._write_later(None, opening))
        state, error, result = JobState.CANCELLED, None, None
        charged = refund = 0.0
        try:
            charged = await self._charge(job.caller, order.cost)
            result = await self._make(job, order)
            state = JobState.SUCCEEDED
            return result
        except asyncio.CancelledError:
            raise JobCancelled("the job was cancelled") from None
        except Exception as failure:
            refusal = error_response(failure, 0)
            state, error = JobState.FAILED, (refusal.code, refusal.message)
            if isinstance(failure, ServiceError):
                refund = charged
            raise
        finally:
            self._running.pop(job.id, None)
            ending = partial(self._end, job, refund, state, error, result)
            self._writes[job.id] = write = asyncio.create_task(self._write_later(begun, ending))
            write.add_done_callback(lambda _: self._writes.pop(job.id, None))

    async def _make(self, job: Job, order: GenerationJob) -> JobResult:
        """Every image of the order, at once; the first failure cancels the others and is told."""
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        last_image(
                            self._conductor.run(
                                ImageTask(
                                    id=f"{job.id}-{i}",
                                    spec=piece.spec,
                                    inputs=ImageInputs(piece.base_image.rgb)
                                    if piece.base_image
                                    else NO_INPUTS,
                                    timeout_s=order.timeout,
                                    caller=job.caller,
                                )
                            )
                        )
                    )
                    for i, piece in enumerate(order.images)
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        pngs, warnings = [], dict.fromkeys(order.warnings)
        for piece, task in zip(order.images, tasks, strict=True):
            made = task.result()
            warnings |= dict.fromkeys(made.warnings)
            record = order.record(piece, {str(stage): name for stage, name in made.profiles})
            pngs.append(embed(made.png, infotext(piece.spec, order.models), record))
        first = order.images[0].spec
        meta = {
            "model": order.model,
            "durationMs": round((time.perf_counter() - began) * 1000),
            "seeds": [piece.spec.seed for piece in order.images],
            "width": first.width,
            "height": first.height,
            "steps": first.steps,
            "guidanceScale": first.guidance,
            "sampler": first.sampler,
            "refined": order.refined,
            "jobId": job.id,
            "warnings": list(warnings),
        }
        return JobResult(tuple(pngs), json.dumps(meta), job.created)

    async def _end(self, job: Job, refund: float, *ending: Any) -> None:
        """The ledger knows how the job ended, and has given back what our own fault has cost."""
        if refund and self._rate_limit:
            await self._ledger.consume(job.caller, -refund, self._rate_limit)
        await self._ledger.finish(job.id, self._owner, *ending)

    async def _charge(self, caller: str, cost: float) -> float:
        """The cost, taken from the caller's allowance, or 0. Raises `RateLimited`.

        While the ledger is away nobody is charged: that is better than no pictures.
        """
        if self._rate_limit is None:
            return 0.0
        try:
            wait = await self._ledger.consume(caller, cost, self._rate_limit)
        except LedgerAway:
            return 0.0
        if wait > 0:
            raise RateLimited(wait)
        return cost

    async def _write_later(
        self, first: asyncio.Task[None] | None, tell: Callable[[], Awaitable[Any]]
    ) -> None:
        """The ledger has been told, after what it was told first, and after a moment."""
        await asyncio.sleep(self._ledger_delay)
        if first is not None:
            await first
        try:
            await tell()
        except LedgerAway:
            logger.warning("the ledger was away too long and missed a job")

    async def _send_heartbeats(self) -> None:
        while self._running:
            with suppress(LedgerAway):
                await self._ledger.heartbeat(self._owner)
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    async def _cancel_local(self, id: str) -> None:
        self.stop(id)
