"""A job as a stream of events, which every response is the end of."""

import asyncio
import gc
from contextlib import aclosing

import pytest

from serve_app.core.errors import OutOfMemory
from serve_app.core.service.job_errors import JobCancelled
from serve_app.core.service.job_events import (
    ImageMade,
    JobDone,
    JobEvent,
    JobStarted,
    StageDone,
)
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobState
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.contracts import Maker
from serve_app.ingress.generation import GenerationRequest, plan_job
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_service import JobService
from serve_app.ingress.native.rerun import GENERATE
from serve_app.ingress.request_context import RequestContext
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor, WaitingConductor
from tests.support.stage_doubles import CountingStage

CONTEXT = RequestContext("me", "/generate")
KEYED = RequestContext("me", "/generate", "key-1", "fingerprint")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(None)


def job_of(images: int = 1) -> GenerationJob:
    return plan_job(GenerationRequest(prompt="a", image_count=images), [], INFO, 1, GENERATE)


def jobs_of(maker: Maker, ledger: Ledger) -> JobService:
    return JobService(maker, ledger, INFO)


async def events_of(jobs: JobService, context: RequestContext, images: int = 1) -> list[JobEvent]:
    return [event async for event in jobs.stream(job_of(images), context)]


async def test_a_job_streams_its_id_the_events_of_its_images_and_its_result(
    ledger: Ledger,
) -> None:
    stage = CountingStage()
    jobs = jobs_of(Conductor(stage, stage, INFO.models), ledger)
    started, *events, done = await events_of(jobs, CONTEXT, images=2)
    assert isinstance(started, JobStarted)
    assert isinstance(done, JobDone)
    of_images: dict[int, list[type]] = {0: [], 1: []}
    for event in events:
        assert not isinstance(event, JobStarted | JobDone)
        of_images[event.number].append(type(event))
    for types in of_images.values():
        assert types[-1] is ImageMade
        assert StageDone in types
    await jobs.drain()
    job = await ledger.get(started.id, 0)
    assert job is not None
    assert job.result == done.result


async def test_closing_the_stream_cancels_the_job(ledger: Ledger) -> None:
    waiting = WaitingConductor()
    jobs = jobs_of(waiting, ledger)
    async with aclosing(jobs.stream(job_of(), CONTEXT)) as events:
        started = await anext(events)
        await waiting.begun.wait()
    assert waiting.cancelled == 1
    await jobs.drain()
    assert isinstance(started, JobStarted)
    job = await ledger.get(started.id, 0)
    assert job is not None
    assert job.state is JobState.CANCELLED


async def test_a_job_with_a_key_outlives_its_stream_and_the_next_call_joins_it(
    ledger: Ledger,
) -> None:
    waiting = WaitingConductor()
    jobs = jobs_of(waiting, ledger)
    async with aclosing(jobs.stream(job_of(), KEYED)) as events:
        first = await anext(events)
        await waiting.begun.wait()
    second = asyncio.ensure_future(events_of(jobs_of(FakeConductor(), ledger), KEYED))
    waiting.go.set()
    started, done = await second
    assert started == first
    assert isinstance(done, JobDone)
    assert (waiting.cancelled, len(waiting.calls)) == (0, 1)


class StoppingLedger(Ledger):
    """Cancels the first job in the moment in which it has been created."""

    jobs: JobService | None = None

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        created = await super().create(job, claim)
        if self.jobs is not None:
            asyncio.get_running_loop().call_soon(self.jobs.cancel_here, job.id)
            self.jobs = None
        return created


async def test_a_job_that_is_cancelled_before_it_begins_is_known_as_cancelled() -> None:
    ledger, maker = StoppingLedger(None), FakeConductor()
    ledger.jobs = jobs = jobs_of(maker, ledger)
    with pytest.raises(JobCancelled):
        await jobs.run(job_of(), KEYED)
    await jobs.drain()
    assert not maker.calls
    assert await jobs.run(job_of(), KEYED)
    assert len(maker.calls) == 1


async def test_a_stream_ends_with_the_error_of_the_first_image_that_fails(ledger: Ledger) -> None:
    jobs = jobs_of(FailingConductor(OutOfMemory("no room")), ledger)
    stream = jobs.stream(job_of(images=3), CONTEXT)
    assert isinstance(await anext(stream), JobStarted)
    with pytest.raises(OutOfMemory, match="no room"):
        await anext(stream)


def feeds() -> set[JobFeed]:
    return {found for found in gc.get_objects() if type(found) is JobFeed}


async def test_the_images_of_a_job_are_freed_without_a_search_for_rings(ledger: Ledger) -> None:
    """Which an ingress makes seldom."""
    jobs, before = jobs_of(FakeConductor(), ledger), feeds()  # of other tests, maybe
    gc.disable()
    try:
        await events_of(jobs, CONTEXT, images=2)
        await jobs.drain()
        assert feeds() <= before
    finally:
        gc.enable()
