"""Cancelling an image in each stage, over HTTP: the engine is free after the step that runs."""

import re

import pytest

from serve_app.core.diffusion.spec import Stage
from tests.support.raw_streams import RawStream, raw_stream
from tests.support.sleeping_service import SleepingService, sleeping_service
from tests.support.waiting import first_match

SCALE, STEPS = 2, 16  # steps of 60 ms, so that next to none passes while a request is sent


async def is_in(stage: Stage, stream: RawStream) -> str:
    """Return the id of a stream's job once its image has taken a step in a stage."""
    found = await stream.until(b'"stage":"%b"' % stage.encode())
    await stream.until(b"event: preview")
    return str(re.findall(rb'"jobId":"(\w+)"', found)[-1], "ascii")


async def leaves_within_a_step(service: SleepingService, steps: int) -> None:
    """Wait until the engine is free: it may finish the step that runs, and one more is counted."""
    engine = await first_match(service.engine, lambda engine: not engine.positions)
    assert engine.steps - steps <= 2
    assert engine.cancelled == 1
    await service.drain()


@pytest.mark.parametrize("stage", Stage)
async def test_closing_the_stream_frees_the_engine_within_a_step(stage: Stage) -> None:
    async with sleeping_service(SCALE, images=1) as service:
        async with service.stream(steps=STEPS) as stream:
            await is_in(stage, stream)
            steps = (await service.engine()).steps
        await leaves_within_a_step(service, steps)


@pytest.mark.parametrize("stage", Stage)
async def test_deleting_a_job_through_another_process_frees_the_engine_within_a_step(
    stage: Stage,
) -> None:
    async with sleeping_service(SCALE, images=1) as service:
        async with service.stream(steps=STEPS) as stream:
            job = await is_in(stage, stream)
            steps = (await service.engine()).steps
            async with raw_stream(service.ports[1], "DELETE", f"/jobs/{job}") as deleting:
                assert b'"cancelled"' in await deleting.until(b"}")
            assert b"CANCELLED" in await stream.rest()
        await leaves_within_a_step(service, steps)
