"""What a conductor says of its stages, and how it drains."""

import asyncio

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    Draining,
)
from serve_app.core.service.info import HealthStatus
from tests.support.conductors import conductor_of, generate
from tests.support.stage_doubles import (
    BlockedStage,
    CountingStage,
)


async def test_health_names_the_stage_that_is_not_ready() -> None:
    health = await conductor_of(CountingStage(ready=2), CountingStage()).health()
    assert health.status is HealthStatus.READY
    assert health.replicas == {"base": 2, "refiner": 1}
    assert health.owed_seconds == 4.5
    health = await conductor_of(CountingStage(), CountingStage(ready=0)).health()
    assert health.status is HealthStatus.LOADING
    assert health.reason == "no replica of refiner is ready yet"


async def test_a_stage_that_scales_to_zero_may_have_no_replica() -> None:
    refiner = CountingStage(ready=0)
    conductor = conductor_of(CountingStage(), refiner, scale_to_zero=(Stage.REFINER,))
    health = await conductor.health()
    assert (health.status, health.reason) == (HealthStatus.READY, "")
    assert health.replicas == {"base": 1, "refiner": 0}
    for id in "ab":  # the second one with known costs
        assert (await generate(conductor, id, timeout_s=60)).png == b"png 20"
    conductor = conductor_of(CountingStage(ready=0), refiner, scale_to_zero=(Stage.REFINER,))
    health = await conductor.health()
    assert (health.status, health.reason) == (
        HealthStatus.LOADING,
        "no replica of base is ready yet",
    )


async def test_health_lists_what_the_devices_of_a_stage_lack_each_once() -> None:
    base = CountingStage(ready=3, shortfall="too little memory")
    health = await conductor_of(base, CountingStage()).health()
    assert health.shortfalls == ("base: too little memory",)


async def test_a_client_that_is_both_stages_is_counted_once_and_listed_for_both() -> None:
    stage = CountingStage(ready=2, shortfall="too little memory")
    conductor = conductor_of(stage, stage)
    health = await conductor.health()
    assert health.replicas == {"base": 2, "refiner": 2}
    assert health.owed_seconds == 3.0
    assert health.shortfalls == ("base and refiner: too little memory",)
    assert (await generate(conductor)).png == b"png 20"
    assert [segment.stage for _, segment in stage.calls] == [Stage.BASE, Stage.REFINER]
    unready = CountingStage(ready=0)
    health = await conductor_of(unready, unready).health()
    assert health.reason == "no replica of base and refiner is ready yet"


async def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    base = BlockedStage()
    conductor = conductor_of(base)
    task = asyncio.create_task(generate(conductor))
    await base.has_calls(1)
    drained = asyncio.create_task(conductor.drain())
    async with asyncio.timeout(30):
        while (await conductor.health()).status is not HealthStatus.DRAINING:
            pass
    with pytest.raises(Draining):
        await generate(conductor, "b")
    assert not drained.done()
    base.release.set()
    await task
    await drained
