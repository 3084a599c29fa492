"""What the conductor counts, over the story of a few images."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    AuraError,
    DeadlineExceeded,
    Draining,
    EngineFault,
    ModelNotFound,
    Overloaded,
    ProfileChanged,
    ReplicaLost,
    SafetyBlock,
)
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.metrics import (
    ACCEPTED,
    IMAGE_SECONDS,
    IMAGES,
    IN_TIME,
    RESUMES,
    STAGE_SECONDS,
    ImageOutcome,
    InMemoryMeter,
    ResumeReason,
)
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.image_metrics import outcome_of
from tests.deployments.test_conductor import SPEC, Clock, Loading, Sleeping
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import CountingStage, dies_at


def conductor(base: Any, refiner: Any, tally: InMemoryMeter) -> Conductor:
    return Conductor(base, refiner, [ModelInfo("demo", 64, NOISE)], tally)


def outcomes(tally: InMemoryMeter) -> dict[str, float]:
    told = {str(one): tally.value(IMAGES, outcome=one) for one in ImageOutcome}
    return {name: count for name, count in told.items() if count}


async def test_a_story_is_told_in_numbers() -> None:
    tally, refiner = InMemoryMeter(), CountingStage()
    working = conductor(CountingStage(trouble=dies_at((1, 13))), refiner, tally)
    await working.generate("made", SPEC, None, None)
    await working.generate("resumed", SPEC, None, None)
    with pytest.raises(ModelNotFound):
        await working.generate("refused", replace(SPEC, model="none"), None, None)
    slow = conductor(Sleeping(), refiner, tally)
    with pytest.raises(DeadlineExceeded):
        await slow.generate("late", SPEC, None, 0.05)
    leaving = asyncio.create_task(slow.generate("cancelled", SPEC, None, None))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.wait([leaving])
    await slow.drain()
    with pytest.raises(Draining):
        await slow.generate("refused too", SPEC, None, None)
    assert outcomes(tally) == {"made": 2, "refused": 2, "late": 1, "cancelled": 1}
    assert tally.value(RESUMES, reason=ResumeReason.LOST) == 1
    assert tally.value(RESUMES, reason=ResumeReason.PROFILE) == 0
    assert (tally.value(IN_TIME), tally.value(ACCEPTED)) == (2, 3)
    assert tally.times(IMAGE_SECONDS) == 2
    assert [tally.times(STAGE_SECONDS, stage=stage) for stage in Stage] == [2, 2]


async def test_an_image_that_is_given_up_has_gone_on_one_time_less_than_it_was_lost() -> None:
    tally = InMemoryMeter()
    deadly = CountingStage(trouble=lambda call, sample: ReplicaLost("gone"))
    with pytest.raises(ReplicaLost):
        await conductor(deadly, None, tally).generate("a", SPEC, None, None)
    assert tally.value(RESUMES, reason=ResumeReason.LOST) == len(deadly.calls) - 1 == 2
    assert outcomes(tally) == {"failed": 1}
    assert (tally.value(IN_TIME), tally.value(ACCEPTED)) == (0, 1)
    assert tally.times(STAGE_SECONDS, stage=Stage.BASE) == 0


async def test_an_image_that_begins_again_under_another_profile_is_counted_as_that() -> None:
    tally, never = (
        InMemoryMeter(),
        CountingStage(trouble=lambda call, sample: ProfileChanged("again")),
    )
    with pytest.raises(ReplicaLost):
        await conductor(never, None, tally).generate("a", SPEC, None, None)
    assert tally.value(RESUMES, reason=ResumeReason.PROFILE) == len(never.calls) - 1 == 2


def test_an_image_s_and_a_stage_s_seconds_are_the_loop_s() -> None:
    tally = InMemoryMeter()
    working = conductor(Loading(), Loading(), tally)
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(working.generate("a", SPEC, None, 1000))
    assert tally.value(IMAGE_SECONDS) == pytest.approx(200, abs=1)
    for stage in Stage:
        assert tally.value(STAGE_SECONDS, stage=stage) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineExceeded("late"), ImageOutcome.LATE),
        (Overloaded("full"), ImageOutcome.REFUSED),
        (SafetyBlock("no"), ImageOutcome.REFUSED),
        (EngineFault("a step failed"), ImageOutcome.FAILED),
        (RuntimeError("a slip"), ImageOutcome.FAILED),
    ],
)
def test_whose_fault_it_was_decides_what_became_of_the_image(
    error: AuraError, outcome: ImageOutcome
) -> None:
    assert outcome_of(error) is outcome
