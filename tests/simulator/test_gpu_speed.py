"""The seconds of turns on a made-up GPU."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample, stage_segments
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.traces import Arrival

SIZE = BatchSize(4, (8,))
SPEED = GpuSpeed(
    tflops=100.0,
    vae_tflops=50.0,
    overhead_seconds=0.01,
    prompt_seconds=0.5,
    step_seconds={(Stage.BASE, 1024, 1024, 8): 2.0, (Stage.REFINER, 1024, 1024, 8): 3.0},
)
DECODE = SPEED.decode(1024, 1024)


def image(steps: int = 20, handoff: float = 1.0) -> Sample[float]:
    spec, schedule, segments = image_of(Arrival(0.0, steps, handoff=handoff), refiner=True)
    return new_sample("a", spec, schedule, segments[0].stage)


def test_a_measured_step_takes_as_long_as_measured() -> None:
    assert SPEED.step(Stage.BASE, 1024, 1024, 8) == 2.0


def test_another_step_takes_its_arithmetic_and_the_overhead() -> None:
    assert SPEED.step(Stage.BASE, 1024, 1024, 1) == pytest.approx(0.01 + 6.76 / 100)
    assert pytest.approx(0.01 + 10.47 / 50) == DECODE


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (WorkKind.STEP, 2.0),
        (WorkKind.DECODE, DECODE),
        (WorkKind.CONDITION, 0.5),
    ],
)
def test_a_turn_takes_as_long_as_its_kind_of_work(work: WorkKind, seconds: float) -> None:
    assert SPEED.turn_seconds(Plan(work, (image(),), 8)) == pytest.approx(seconds)


def test_an_image_pays_its_share_of_full_batches() -> None:
    sample = image(steps=20)
    last = StageSegment(Stage.BASE, 20, last=True)
    assert SPEED.amortized_seconds(sample, last, SIZE) == pytest.approx(20 * 2 / 4 + 0.5 + DECODE)
    first = StageSegment(Stage.BASE, 16, last=False)
    assert SPEED.amortized_seconds(sample, first, SIZE) == pytest.approx(16 * 2 / 4 + 0.5)


def test_each_segment_costs_the_steps_that_are_left_of_it() -> None:
    sample = image(steps=20, handoff=0.8)
    segments = stage_segments(sample.schedule, 0.8, refiner=True)
    base, refiner = SPEED.amortized_by_segment(sample, segments, SIZE)
    assert base == pytest.approx(16 * 2 / 4 + 0.5)
    assert refiner == pytest.approx(4 * 3 / 4 + 0.5 + DECODE)


def test_an_image_alone_pays_for_whole_steps_of_all_segments() -> None:
    sample = image(steps=20, handoff=0.8)
    segments = stage_segments(sample.schedule, 0.8, refiner=True)
    seconds = SPEED.image_seconds(replace(sample, index=10), segments, SIZE)
    assert seconds == pytest.approx(6 * 2 + 4 * 3 + 2 * 0.5 + DECODE)


def test_unguided_and_shallow_steps_cost_less() -> None:
    def seconds(**options: Any) -> float:
        arrival = Arrival(0.0, 20, **options)
        spec, schedule, segments = image_of(arrival, refiner=False)
        sample: Sample[float] = new_sample("a", spec, schedule, segments[0].stage)
        lanes = BatchSize(4, (1, 2, 4, 8))
        return SPEED.image_seconds(sample, segments, lanes) - 0.5 - DECODE

    one_row, shallow = (
        SPEED.step(Stage.BASE, 1024, 1024, 1),
        SPEED.step(Stage.BASE, 1024, 1024, 2, shallow=True),
    )
    two_rows = SPEED.step(Stage.BASE, 1024, 1024, 2)
    assert seconds() == pytest.approx(20 * two_rows)
    assert 20 * one_row < seconds(guidance_low=0.28, guidance_high=5.42) < 20 * two_rows
    assert seconds(guidance=1.0) == pytest.approx(20 * one_row)
    assert seconds(cache=StepCache.DEEPCACHE) == pytest.approx(7 * two_rows + 13 * shallow)
