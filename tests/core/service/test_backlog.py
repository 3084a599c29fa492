"""What the images in flight still cost, on costs of one second a step."""

from dataclasses import replace

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.demand import Demand
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, new_sample, stage_segments
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, WorkKind
from serve_app.core.service.backlog import Backlog, ImageInFlight

SPEC = ImageSpec(
    prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5, handoff=0.8, model="fox"
)
BASE, REFINER = ModelKey(Stage.BASE, "fox"), ModelKey(Stage.REFINER)
STEPS = [TurnKind(WorkKind.STEP, key, 64, 64, 4) for key in (BASE, REFINER)]
FREE = [TurnKind(WorkKind.CONDITION, key, rows=2) for key in (BASE, REFINER)] + [
    replace(step, work=WorkKind.DECODE, rows=0) for step in STEPS
]
COSTS = CostTable(
    dict.fromkeys(STEPS, 1.0) | dict.fromkeys(FREE, 0.0),
    {BASE: BatchSize(2, 4), REFINER: BatchSize(2, 4)},
)


def image(id: str, *, refiner: bool = True, at: int = 0, model: str = "fox") -> ImageInFlight:
    spec = replace(SPEC, model=model)
    schedule = make_schedule(NoiseConfig(), spec.sampler, spec.steps, None, spec.handoff)
    segments = stage_segments(schedule, spec.handoff, refiner=refiner)
    sample: Sample[float] = new_sample(id, spec, schedule, segments[0].stage)
    return ImageInFlight(replace(sample, index=at), segments)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(Stage)


def calibrate(backlog: Backlog) -> None:
    for stage in Stage:
        backlog.costs[stage] = COSTS


def test_an_image_is_in_the_backlog_until_it_is_removed(backlog: Backlog) -> None:
    fox = image("a")
    backlog.add(fox)
    assert len(backlog) == 1
    backlog.remove(fox)
    assert len(backlog) == 0
    assert backlog.owed_seconds() == 0


def test_a_backlog_is_calibrated_once_a_step_of_every_stage_was_measured(backlog: Backlog) -> None:
    assert not backlog.is_calibrated
    backlog.costs[Stage.BASE] = COSTS
    assert not backlog.is_calibrated
    backlog.costs[Stage.REFINER] = COSTS
    assert backlog.is_calibrated


def test_images_that_can_step_together_share_their_seconds(backlog: Backlog) -> None:
    calibrate(backlog)
    first, second = image("a"), image("b")
    backlog.add(first)
    assert backlog.owed_seconds() == backlog.seconds_of(first) == 20
    backlog.add(second)
    assert backlog.owed_seconds() == 20
    assert backlog.seconds_of(second) == 20


def test_images_with_fewer_steps_left_run_before_an_image(backlog: Backlog) -> None:
    calibrate(backlog)
    new, half_done = image("new"), image("half", refiner=False, at=10)
    backlog.add(new)
    backlog.add(half_done)
    assert half_done.steps_left == 10
    assert backlog.seconds_before(new) == 10
    assert backlog.seconds_before(half_done) == 0


def test_demand_without_costs_is_the_number_of_images(backlog: Backlog) -> None:
    fox = image("a")
    backlog.add(fox)
    backlog.record_demand(fox)
    assert backlog.demands() == dict.fromkeys(Stage, Demand(1))


def test_demand_counts_upstream_work_apart_and_totals_for_ever(backlog: Backlog) -> None:
    calibrate(backlog)
    fox = image("a")
    backlog.add(fox)
    backlog.record_demand(fox)
    assert backlog.demands() == {  # two images step together
        Stage.BASE: Demand(1, 8, 0, 8),
        Stage.REFINER: Demand(1, 2, 2, 2),
    }
    backlog.remove(fox)
    assert backlog.demands() == {
        Stage.BASE: Demand(arrived_total=8),
        Stage.REFINER: Demand(arrived_total=2),
    }


def test_the_default_timeout_covers_the_backlog_and_the_models_to_load(backlog: Backlog) -> None:
    assert backlog.default_timeout(several_models=False, cold_stages=0) == 60
    assert backlog.default_timeout(several_models=False, cold_stages=1) == 60 + 120
    for number, model in enumerate(("fox", "owl", "fox")):
        backlog.add(image(str(number), model=model))
    work = 4 * backlog.owed_seconds()
    assert work > 0
    assert backlog.default_timeout(several_models=False, cold_stages=0) == work + 60
    assert backlog.default_timeout(several_models=True, cold_stages=0) == work + 60 + 2 * 120
