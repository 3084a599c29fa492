"""How long an image may take whose request names no limit."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    DeadlineExceeded,
)
from serve_app.deployments.conductor import Conductor
from tests.support.conductors import SPEC, conductor_of, generate
from tests.support.stage_doubles import (
    BlockedStage,
    JumpingLoop,
    SlowStage,
    dies_at,
)


async def timeout_beside(models: tuple[str, ...], *specs: ImageSpec) -> float:
    """Return the default timeout beside images in flight, but for the time of their own steps."""
    base, refiner = BlockedStage(), BlockedStage()
    conductor = conductor_of(base, refiner, models=models)
    tasks = [
        asyncio.create_task(generate(conductor, str(number), spec))
        for number, spec in enumerate(specs)
    ]
    at_refiner = sum(spec.handoff == 0 for spec in specs)
    await base.has_calls(len(specs) - at_refiner)
    await refiner.has_calls(at_refiner)
    timeout = conductor.default_timeout() - 4 * conductor.owed_seconds()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return round(timeout, 6)


async def test_the_default_timeout_grows_with_the_models_that_may_have_to_be_loaded() -> None:
    fox, owl = replace(SPEC, model="fox"), replace(SPEC, model="owl")
    assert await timeout_beside(("fox",), fox, SPEC) == 60  # the only model is always loaded
    assert await timeout_beside(("fox", "owl"), fox) == 180  # may have been evicted for the other
    assert await timeout_beside(("fox", "owl", "ink"), fox, owl, SPEC) == 300
    refiner_alone = replace(owl, handoff=0)
    assert await timeout_beside(("fox", "owl"), fox, refiner_alone) == 180


async def test_the_default_timeout_leaves_time_for_a_stage_at_zero_replicas_to_start() -> None:
    base, refiner = BlockedStage(), BlockedStage()
    assert conductor_of(base, refiner).default_timeout() == 60
    cold = conductor_of(base, refiner, scale_to_zero=(Stage.REFINER,))
    assert cold.default_timeout() == 180


def png_on_a_jumping_clock(conductor: Conductor, timeout_s: float | None) -> bytes:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(generate(conductor, timeout_s=timeout_s)).png


def test_the_default_timeout_is_long_enough_to_load_a_model() -> None:
    several = conductor_of(SlowStage(100), models=("fox", "owl"))
    assert png_on_a_jumping_clock(several, None) == b"png 20"
    with pytest.raises(DeadlineExceeded, match=r"within 6\d s"):
        png_on_a_jumping_clock(conductor_of(SlowStage(100)), None)


def test_the_default_timeout_starts_again_when_a_loss_is_noticed() -> None:
    """The first replica is lost in the middle, and each call takes fifty seconds."""
    stage = SlowStage(50, fault=dies_at((0, 8)))
    assert png_on_a_jumping_clock(conductor_of(stage), None) == b"png 20"
    stage = SlowStage(50, fault=dies_at((0, 8)))
    with pytest.raises(DeadlineExceeded, match="within 70 s"):
        png_on_a_jumping_clock(conductor_of(stage), 70)
