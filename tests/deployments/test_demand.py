"""The demand that a conductor reports for each stage."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.demand import Demand
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    DeadlineExceeded,
)
from serve_app.core.scheduling.work import BatchSize, WorkKind
from tests.support.conductors import SPEC, conductor_of, generate
from tests.support.stage_doubles import (
    BlockedStage,
    CountingStage,
)

STEPS = {stage: TurnKind(WorkKind.STEP, ModelKey(stage, "demo"), 64, 64, 4) for stage in Stage}
PROMPTS = [TurnKind(WorkKind.CONDITION, ModelKey(stage, "demo"), rows=2) for stage in Stage]
FREE = dict.fromkeys([*PROMPTS, replace(STEPS[Stage.REFINER], work=WorkKind.DECODE, rows=0)], 0.0)
SECOND = CostTable(
    {**dict.fromkeys(STEPS.values(), 1.0), **FREE},
    {ModelKey(Stage.BASE, "demo"): BatchSize(2, (4,))},
)


async def test_demands_count_images_at_a_stage_or_upstream_and_all_that_ever_arrived() -> None:
    base, refiner = BlockedStage(costs=SECOND), BlockedStage(costs=SECOND)
    base.ready = refiner.ready = 0
    conductor = conductor_of(base, refiner)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())
    first = asyncio.create_task(generate(conductor, "first"))
    await base.has_calls(1)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand(1))  # no costs are known yet
    base.release.set()
    refiner.release.set()
    await first
    base.release.clear()
    refiner.release.clear()
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())  # nor were they counted
    tasks = [asyncio.create_task(generate(conductor, id)) for id in "abc"]
    tasks.append(asyncio.create_task(generate(conductor, "d", replace(SPEC, handoff=0))))
    await base.has_calls(1 + 3)
    await refiner.has_calls(1 + 1)
    # of twenty steps base has 16, and two step together
    wanted = {Stage.BASE: Demand(3, 24, 0, 24), Stage.REFINER: Demand(4, 16, 6, 16)}
    assert await conductor.demands() == wanted
    base.release.set()
    await refiner.has_calls(1 + 4)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(4, 16, 0, 16)}
    assert await conductor.demands() == wanted
    refiner.release.set()
    await asyncio.gather(*tasks)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(0, 0, 0, 16)}
    assert await conductor.demands() == wanted


async def test_a_new_conductor_takes_the_costs_of_a_step_from_the_replicas() -> None:
    base, refiner = BlockedStage(costs=SECOND), BlockedStage(costs=SECOND)
    conductor = conductor_of(base, refiner)
    task = asyncio.create_task(generate(conductor, "first"))
    await base.has_calls(1)
    assert await conductor.demands() == {Stage.BASE: Demand(1, 8), Stage.REFINER: Demand(1, 2, 2)}
    base.release.set()
    refiner.release.set()
    await task


async def test_a_refused_image_is_no_demand() -> None:
    conductor = conductor_of(CountingStage(costs=SECOND), CountingStage(costs=SECOND))
    await generate(conductor, "warm")
    with pytest.raises(DeadlineExceeded):
        await generate(conductor, timeout_s=1)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())


async def test_without_a_refiner_there_is_no_demand_for_one() -> None:
    assert set(await conductor_of(CountingStage()).demands()) == {Stage.BASE}
