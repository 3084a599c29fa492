"""What the images in flight still cost, on costs of one second a step."""

from dataclasses import replace

import pytest

from serve_app.core.capacity.admission import StageWork
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
    {BASE: BatchSize(2, (4,)), REFINER: BatchSize(2, (4,))},
)


def image(
    id: str, *, refiner: bool = True, at: int = 0, model: str = "fox", handoff: float = 0.8
) -> ImageInFlight:
    spec = replace(SPEC, model=model, handoff=handoff)
    schedule = make_schedule(NoiseConfig(), spec.sampler, spec.steps, None, spec.handoff)
    segments = stage_segments(schedule, spec.handoff, refiner=refiner)
    sample: Sample[float] = new_sample(id, spec, schedule, segments[0].stage)
    return ImageInFlight(replace(sample, index=at), segments)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog({stage: stage for stage in Stage})


def calibrate(backlog: Backlog) -> None:
    for stage in Stage:
        backlog.set_costs(stage, COSTS)


def owed(backlog: Backlog) -> dict[Stage, float]:
    return {stage: backlog.owed.total(stage) for stage in backlog.owed.stages}


def test_an_image_is_owed_until_it_is_removed(backlog: Backlog) -> None:
    calibrate(backlog)
    fox = image("a")
    backlog.add(fox)
    assert len(backlog) == 1
    assert (backlog.get("a"), backlog.get("b")) == (fox, None)
    assert owed(backlog) == {Stage.BASE: 8, Stage.REFINER: 2}  # two images step together
    backlog.remove(fox)
    assert len(backlog) == 0
    assert owed(backlog) == dict.fromkeys(Stage, 0)
    backlog.update(fox)  # such as by a late event
    assert owed(backlog) == dict.fromkeys(Stage, 0)


def test_the_models_in_use_are_those_of_the_stages_at_which_images_are(backlog: Backlog) -> None:
    assert backlog.model_keys == frozenset()
    fox = image("a")
    backlog.add(fox)
    assert backlog.model_keys == {fox.sample.model_key}
    fox.sample = replace(fox.sample, stage=Stage.REFINER)
    assert {key.stage for key in backlog.model_keys} == {Stage.REFINER}


def test_a_backlog_is_calibrated_once_a_step_of_every_stage_was_measured(backlog: Backlog) -> None:
    calibrated = [backlog.is_calibrated]
    for stage in Stage:
        backlog.set_costs(stage, COSTS)
        calibrated.append(backlog.is_calibrated)
    assert calibrated == [False, False, True]
    assert backlog.costs == dict.fromkeys(Stage, COSTS)


def test_what_an_image_takes_is_known_once_each_stage_before_it_was_measured(
    backlog: Backlog,
) -> None:
    fox = image("fox")
    backlog.add(fox)
    known = [backlog.has_costs(fox)]
    for stage in Stage:
        backlog.set_costs(stage, COSTS)
        known.append(backlog.has_costs(fox))
    assert known == [False, False, True]


def test_the_first_costs_count_at_once_for_what_waits(backlog: Backlog) -> None:
    backlog.add(image("a"))
    assert owed(backlog) == dict.fromkeys(Stage, 0)
    assert backlog.works([image("b")]) == ()
    assert backlog.batched_seconds(image("b")) == 0
    calibrate(backlog)
    assert owed(backlog) == {Stage.BASE: 8, Stage.REFINER: 2}


def test_later_costs_count_once_they_have_changed_as_often_as_images_wait(backlog: Backlog) -> None:
    calibrate(backlog)
    for id in "abc":
        backlog.add(image(id))
    slower = replace(COSTS, seconds_by_turn={**COSTS.seconds_by_turn, STEPS[0]: 2.0})
    totals = []
    for _ in range(4):
        backlog.set_costs(Stage.BASE, slower)
        totals.append(backlog.owed.total(Stage.BASE))
    assert totals[0] == 24
    assert totals[-1] == 48


def test_an_image_is_owed_less_with_each_step_that_is_known_of(backlog: Backlog) -> None:
    calibrate(backlog)
    fox = image("a")
    backlog.add(fox)
    backlog.update(fox, 10)
    assert owed(backlog) == {Stage.BASE: 3, Stage.REFINER: 2}
    fox.sample = replace(fox.sample, index=16)
    backlog.update(fox)
    assert owed(backlog) == {Stage.BASE: 0, Stage.REFINER: 2}


def test_where_one_replica_runs_both_stages_their_work_is_owed_together() -> None:
    backlog = Backlog(dict.fromkeys(Stage, Stage.BASE))
    calibrate(backlog)
    backlog.add(image("a"))
    assert owed(backlog) == {Stage.BASE: 10}
    assert backlog.works([image("b"), image("c")]) == (StageWork(Stage.BASE, 2, 20.0, 20.0, 20.0),)


def test_a_job_s_work_is_that_of_all_its_images_and_as_long_as_the_longest(
    backlog: Backlog,
) -> None:
    calibrate(backlog)
    assert backlog.works([image("a"), image("b", at=10)]) == (
        StageWork(Stage.BASE, 2, 8 + 3.0, 16.0, 16.0),
        StageWork(Stage.REFINER, 2, 4.0, 4.0, 4.0),
    )
    assert backlog.batched_seconds(image("a")) == 20


def test_a_job_s_images_take_less_alone_than_in_full_batches(backlog: Backlog) -> None:
    alone = {replace(step, rows=2): 0.25 for step in STEPS}
    costs = CostTable(
        {**COSTS.seconds_by_turn, **alone},
        {model: BatchSize(size.images, (2, 4)) for model, size in COSTS.batch_sizes.items()},
    )
    for stage in Stage:
        backlog.set_costs(stage, costs)
    assert backlog.works([image("a")]) == (
        StageWork(Stage.BASE, 1, 8.0, isolated=4.0, batched=16.0),
        StageWork(Stage.REFINER, 1, 2.0, isolated=1.0, batched=4.0),
    )


def test_models_that_only_others_wait_for_have_to_be_loaded_first(backlog: Backlog) -> None:
    load = TurnKind(WorkKind.LOAD, ModelKey(Stage.BASE, "owl"))
    costs = replace(COSTS, seconds_by_turn={**COSTS.seconds_by_turn, load: 30.0})
    backlog.set_costs(Stage.BASE, costs)
    for id, model in (("a", "owl"), ("b", "owl"), ("c", "fox")):
        backlog.add(image(id, model=model))
    backlog.add(image("d", model="owl", handoff=0))  # the refiner alone
    assert backlog.load_seconds([image("e")]) == 30
    assert backlog.load_seconds([image("e", model="owl"), image("f")]) == 0


def test_demand_without_costs_is_the_number_of_images(backlog: Backlog) -> None:
    backlog.add(image("a"))
    assert backlog.demands() == dict.fromkeys(Stage, Demand(1))


def test_demand_counts_upstream_work_apart_and_totals_for_ever(backlog: Backlog) -> None:
    calibrate(backlog)
    fox = image("a")
    backlog.add(fox)
    assert backlog.demands() == {
        Stage.BASE: Demand(1, 8, 0, 8),
        Stage.REFINER: Demand(1, 2, 2, 2),
    }
    backlog.remove(fox)
    assert backlog.demands() == {
        Stage.BASE: Demand(arrived_total=8),
        Stage.REFINER: Demand(arrived_total=2),
    }


def timeout(backlog: Backlog, fox: ImageInFlight, *, several: bool = False, cold: int = 0) -> float:
    return backlog.default_timeout(fox, several_models=several, cold_stages=cold)


def test_the_default_timeout_covers_the_work_in_flight_and_the_image_alone(
    backlog: Backlog,
) -> None:
    calibrate(backlog)
    fox = image("a")
    assert timeout(backlog, fox) == 4 * 20 + 60
    backlog.add(fox)
    backlog.add(image("b"))
    assert timeout(backlog, fox) == 4 * (2 * 10 + 20) + 60


def test_before_a_step_was_measured_the_default_timeout_is_for_a_slow_machine(
    backlog: Backlog,
) -> None:
    fox = image("a")
    backlog.add(fox)
    backlog.add(image("b"))
    slow = timeout(backlog, fox) - 60
    assert slow > 0
    backlog.remove(fox)
    assert timeout(backlog, fox) - 60 == pytest.approx(slow / 2)


def test_the_default_timeout_grows_with_the_models_that_may_have_to_be_loaded(
    backlog: Backlog,
) -> None:
    fox = image("a")
    assert timeout(backlog, fox) == 60
    assert timeout(backlog, fox, cold=1) == 60 + 120
    assert timeout(backlog, fox, several=True) == 60 + 120  # may have been evicted
    calibrate(backlog)
    for number, model in enumerate(("fox", "owl", "fox")):
        backlog.add(image(str(number), model=model))
    backlog.add(image("refined", model="ink", handoff=0))
    assert timeout(backlog, fox, several=True) - timeout(backlog, fox) == 2 * 120


def test_an_image_that_has_begun_has_no_place_among_those_that_wait(backlog: Backlog) -> None:
    calibrate(backlog)
    images = [image(id) for id in "abc"]
    for number, waiting in enumerate(images):
        waiting.due = 10.0 - number
        backlog.add(waiting)
    assert [backlog.position(waiting) for waiting in images] == [3, 2, 1]
    backlog.note_step(images[2], 0, now=5.0)
    assert [backlog.position(waiting) for waiting in images] == [2, 1, 0]


def test_what_is_left_of_an_image_counts_from_the_step_that_it_is_about_to_take(
    backlog: Backlog,
) -> None:
    calibrate(backlog)
    fox = image("a", refiner=False)
    backlog.add(fox)
    assert backlog.time_left(fox).steps == 20
    backlog.note_step(fox, 4, now=100.0)
    assert backlog.time_left(fox).steps == 16
    backlog.note_step(fox, 6, now=105.0)
    assert fox.pace.factor == 2.5  # times the costs' one second
    assert owed(backlog)[Stage.BASE] == 14 / 2  # in batches of two
