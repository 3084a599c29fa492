"""What the conductor records of a few images."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from serve_app.core.diffusion.spec import ImageSpec, Stage
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
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import last_image
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.metrics import (
    GPU_WASTED,
    IMAGE_DURATION,
    IMAGES,
    IMAGES_COMPLETED,
    IMAGES_ON_TIME,
    IMAGES_RESUMED,
    STAGE_DURATION,
    ImageOutcome,
    InMemoryMeter,
    ResumeReason,
)
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.image_metrics import outcome_of
from serve_app.deployments.stage_client import StageClient
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import (
    BlockedStage,
    CountingStage,
    JumpingLoop,
    SlowStage,
    dies_at,
)

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5, handoff=0.8)


def conductor_of(base: StageClient, refiner: StageClient | None, meter: InMemoryMeter) -> Conductor:
    return Conductor(base, refiner, [ModelInfo("demo", 64, NOISE)], meter)


async def generate(
    conductor: Conductor, id: str = "a", spec: ImageSpec = SPEC, timeout_s: float | None = None
) -> None:
    await last_image(conductor.run(ImageTask(id=id, spec=spec, timeout_s=timeout_s)))


def outcomes(meter: InMemoryMeter) -> dict[str, float]:
    counts = {
        str(outcome): sum(
            meter.value(IMAGES, outcome=outcome, model=model) for model in ("demo", "unknown")
        )
        for outcome in ImageOutcome
    }
    return {name: count for name, count in counts.items() if count}


async def test_the_metrics_of_a_few_images_with_every_outcome() -> None:
    meter, refiner = InMemoryMeter(), CountingStage()
    conductor = conductor_of(CountingStage(fault=dies_at((1, 13))), refiner, meter)
    await generate(conductor, "made")
    await generate(conductor, "resumed")
    with pytest.raises(ModelNotFound):
        await generate(conductor, "refused", replace(SPEC, model="none"))
    blocked = BlockedStage()
    slow = conductor_of(blocked, refiner, meter)
    with pytest.raises(DeadlineExceeded):
        await generate(slow, "late", timeout_s=0.05)
    leaving = asyncio.create_task(generate(slow, "cancelled"))
    await blocked.has_calls(2)
    leaving.cancel()
    await asyncio.wait([leaving])
    await slow.drain()
    with pytest.raises(Draining):
        await generate(slow, "refused too")
    assert outcomes(meter) == {"made": 2, "refused": 2, "late": 1, "cancelled": 1}
    refused = {
        model: meter.value(IMAGES, outcome=ImageOutcome.REFUSED, model=model)
        for model in ("demo", "unknown")
    }
    assert refused == {"demo": 1, "unknown": 1}  # a caller's own words are no label
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.LOST) == 1
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.PROFILE) == 0
    assert (meter.value(IMAGES_ON_TIME), meter.value(IMAGES_COMPLETED)) == (2, 3)
    assert meter.times(IMAGE_DURATION, model="demo") == 2
    assert [meter.times(STAGE_DURATION, stage=stage) for stage in Stage] == [2, 2]


async def test_a_stream_that_is_closed_early_is_a_cancelled_image() -> None:
    meter = InMemoryMeter()
    events = conductor_of(CountingStage(), None, meter).run(ImageTask(id="a", spec=SPEC))
    async with aclosing(events):
        await anext(events)
    assert outcomes(meter) == {"cancelled": 1}


async def test_a_consumer_that_closes_the_stream_at_the_image_has_it_made() -> None:
    meter = InMemoryMeter()
    await generate(conductor_of(CountingStage(), None, meter))  # stops reading at `Generated`
    assert outcomes(meter) == {"made": 1}


async def test_an_image_that_is_given_up_has_resumed_once_less_than_it_was_lost() -> None:
    meter = InMemoryMeter()
    deadly = CountingStage(fault=lambda call, sample: ReplicaLost("the replica is gone"))
    with pytest.raises(ReplicaLost):
        await generate(conductor_of(deadly, None, meter))
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.LOST) == len(deadly.calls) - 1 == 2
    assert outcomes(meter) == {"failed": 1}
    assert (meter.value(IMAGES_ON_TIME), meter.value(IMAGES_COMPLETED)) == (0, 1)
    assert meter.times(STAGE_DURATION, stage=Stage.BASE) == 0


async def test_an_image_that_starts_again_under_another_profile_counts_as_resumed() -> None:
    meter = InMemoryMeter()
    changing = CountingStage(fault=lambda call, sample: ProfileChanged("again"))
    with pytest.raises(ReplicaLost):
        await generate(conductor_of(changing, None, meter))
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.PROFILE) == len(changing.calls) - 1 == 2


def test_durations_of_images_and_stages_are_in_the_event_loop_s_seconds() -> None:
    meter = InMemoryMeter()
    conductor = conductor_of(SlowStage(100), SlowStage(100), meter)
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(generate(conductor, timeout_s=1000))
    assert meter.value(IMAGE_DURATION, model="demo") == pytest.approx(200, abs=1)
    for stage in Stage:
        assert meter.value(STAGE_DURATION, stage=stage) == pytest.approx(100, abs=1)


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


async def test_the_gpu_time_of_earlier_stages_is_wasted_on_an_image_that_ends_at_a_later_one() -> (
    None
):
    """The replicas of the earlier stages have finished with it. Each segment took half a second."""
    meter, refiner = InMemoryMeter(), BlockedStage()
    conductor = conductor_of(CountingStage(), refiner, meter)
    leaving = asyncio.create_task(generate(conductor, "cancelled"))
    await refiner.has_calls(1)
    assert meter.value(GPU_WASTED) == 0
    leaving.cancel()
    await asyncio.wait([leaving])
    assert meter.value(GPU_WASTED) == 0.5
    with pytest.raises(DeadlineExceeded):
        await generate(conductor, "late", timeout_s=0.05)
    assert meter.value(GPU_WASTED) == 1.0
    refiner.release.set()
    await generate(conductor, "made")
    assert meter.value(GPU_WASTED) == 1.0


async def test_the_gpu_time_of_an_image_that_another_process_has_by_now_is_not_wasted() -> None:
    meter = InMemoryMeter()
    taken = CountingStage(fault=lambda call, sample: TakenOver("another process has it"))
    with pytest.raises(TakenOver):
        await generate(conductor_of(CountingStage(), taken, meter))
    assert meter.value(GPU_WASTED) == 0
