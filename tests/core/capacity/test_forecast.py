"""A forecast against what the scheduler then does, with turns that take a stated time."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.forecast import (
    amortized_seconds,
    forecast,
    image_seconds,
    mean_step_seconds,
    pending_work,
)
from serve_app.core.capacity.gpu_time import GpuTimeAccount
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, stage_segments, with_latents
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind
from tests.support.keys import lora, lora_key
from tests.support.scheduler_runs import (
    NOISE,
    next_plan,
    run_plan,
    sample,
    scheduler_with,
    whole_segment,
)

SIZE = BatchSize(4, (8,))
STEP = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE), 64, 64, 8)
PROMPT = TurnKind(WorkKind.CONDITION, ModelKey(Stage.BASE), rows=2)
DECODE = TurnKind(WorkKind.DECODE, ModelKey(Stage.BASE), 64, 64)
COSTS = CostTable({STEP: 1.0, PROMPT: 0.25, DECODE: 0.5}, {ModelKey(Stage.BASE): SIZE})


def owed(
    image: Sample[float], work: WorkKind = WorkKind.CONDITION, segment: StageSegment | None = None
) -> PendingWork[float]:
    segment = segment or whole_segment(image)
    return PendingWork(image, segment, work, due=segment.stop - image.index)


def test_a_lone_image_pays_for_all_lanes() -> None:
    result = forecast([owed(sample("a", 10))], COSTS)
    assert result.seconds == 10.75
    assert result.shares == {"a": 10.75}


def test_images_that_step_together_pay_for_the_lanes_together() -> None:
    queue = [owed(sample(id, 10)) for id in "abcd"]
    assert forecast(queue, COSTS).shares == dict.fromkeys("abcd", 10 / 4 + 0.75)


def test_a_queue_takes_as_many_steps_as_it_has_batches() -> None:
    queue = [owed(sample(str(number), 10)) for number in range(9)]
    assert forecast(queue, COSTS).seconds == 3 * 10 + 9 * 0.75


@pytest.mark.parametrize("counts", [(), (2, 4, 8)])
def test_an_image_takes_as_long_as_its_own_turns_and_the_steps_of_its_batches(
    counts: tuple[int, ...],
) -> None:
    assert image_seconds([owed(sample("a", 10))], COSTS, images=1) == 10.75
    steps = {
        TurnKind(WorkKind.STEP, ModelKey(Stage.BASE), 64, 64, lanes): seconds
        for lanes, seconds in ((2, 0.5), (4, 0.75))
    }
    size = BatchSize(4, counts)
    costs = CostTable({**COSTS.seconds_by_turn, **steps}, {ModelKey(Stage.BASE): size})
    for images, seconds in ((1, 5.75), (2, 8.25), (4, 10.75), (9, 10.75), (None, 10.75)):
        assert image_seconds([owed(sample("a", 10))], costs, images=images) == seconds


def test_the_last_image_of_a_batch_pays_alone_for_its_remaining_steps() -> None:
    result = forecast([owed(sample("long", 10)), owed(sample("short", 4))], COSTS)
    assert result.shares == {"long": 2 + 6 + 0.75, "short": 2 + 0.75}


def test_images_of_different_sizes_step_apart() -> None:
    wide = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE), 128, 64, 8)
    costs = replace(COSTS, seconds_by_turn={**COSTS.seconds_by_turn, wide: 3.0})
    result = forecast([owed(sample("a", 10)), owed(sample("wide", 10, side=128))], costs)
    assert result.shares == {"a": 10.75, "wide": 30 + 0.25 + 1.0}


def test_in_fast_mode_a_step_costs_the_rows_that_are_there() -> None:
    rows = {2: 1.0, 3: 1.5, 4: 1.75}
    known = {replace(STEP, rows=count): seconds for count, seconds in rows.items()}
    costs = CostTable({**known, PROMPT: 0.0, DECODE: 0.0}, {ModelKey(Stage.BASE): BatchSize(4)})
    queue = [owed(sample("a", 10)), owed(sample("b", 10)), owed(sample("c", 4, guidance=1))]
    result = forecast(queue[::2], costs)
    assert result.seconds == 4 * 1.5 + 6 * 1.0
    assert result.shares["c"] == 2.0
    assert forecast(queue[:2], costs).seconds == 17.5


def test_finished_work_is_not_paid_again() -> None:
    conditioned = with_latents(replace(sample("a", 10), index=7), 1.0, 1)
    assert forecast([owed(conditioned, WorkKind.STEP)], COSTS).seconds == 3.5
    assert forecast([owed(replace(conditioned, index=10), WorkKind.DECODE)], COSTS).seconds == 0.5
    assert forecast([owed(replace(conditioned, index=10), WorkKind.LOAD)], COSTS).seconds == 0.5
    handing = StageSegment(Stage.BASE, 9, last=False)
    assert forecast([owed(conditioned, WorkKind.STEP, handing)], COSTS).seconds == 2.0


def test_an_init_image_is_encoded_first() -> None:
    encode = TurnKind(WorkKind.ENCODE, ModelKey(Stage.BASE), 64, 64)
    costs = replace(COSTS, seconds_by_turn={**COSTS.seconds_by_turn, encode: 0.125})
    assert forecast([owed(sample("a", 10, strength=0.5))], costs).seconds == 5.875
    assert forecast([owed(sample("a", 10, strength=0.5), WorkKind.ENCODE)], costs).seconds == 5.625


def test_a_model_that_several_images_wait_for_is_loaded_once() -> None:
    spec = replace(sample("a").spec, model="owl", extensions=(lora("ink"), lora("wash")))
    waiting = [replace(sample(id), spec=spec) for id in "ab"]
    known = {
        TurnKind(WorkKind.LOAD, ModelKey(Stage.BASE, "owl")): 8.0,
        TurnKind(WorkKind.ATTACH, ModelKey(Stage.BASE, "owl"), attached=lora_key("ink")): 2.0,
    }
    alone = forecast([owed(image) for image in waiting], CostTable(known)).seconds
    loading = forecast([owed(image, WorkKind.LOAD) for image in waiting], CostTable(known))
    assert loading.seconds - alone == pytest.approx(8)
    attaching = forecast([owed(image, WorkKind.ATTACH) for image in waiting], CostTable(known))
    assert attaching.seconds - alone == pytest.approx(4)  # the other LoRA costs the same


def test_an_image_costs_a_busy_device_its_share_of_full_batches() -> None:
    pending = owed(sample("a", 10))
    assert amortized_seconds([pending], COSTS) == 10 / 4 + 0.75
    assert amortized_seconds([pending, pending], COSTS) == 2 * (10 / 4 + 0.75)
    assert amortized_seconds([], COSTS) == 0
    alone = replace(COSTS, batch_sizes={ModelKey(Stage.BASE): BatchSize(1, (8,))})
    assert amortized_seconds([pending], alone) == forecast([pending], alone).seconds == 10.75


def test_an_empty_queue_takes_no_time() -> None:
    assert forecast([], COSTS).seconds == 0


def test_what_is_left_of_an_image_is_listed_by_segment() -> None:
    schedule = make_schedule(NOISE, Sampler.EULER, 10, None, 0.8)
    image = replace(sample("a", 10, strength=1.0), schedule=schedule)
    segments = stage_segments(schedule, 0.8, refiner=True)
    base, refiner = pending_work(image, segments)
    assert (base.steps_left, base.segment, base.sample) == (8, segments[0], image)
    assert (refiner.steps_left, refiner.sample.stage, refiner.sample.inputs.init_image) == (
        2,
        Stage.REFINER,
        None,
    )
    (rest,) = pending_work(replace(image, index=9), segments)
    assert (rest.steps_left, rest.segment) == (1, segments[1])
    (end,) = pending_work(replace(image, index=10), segments)
    assert end.steps_left == 0


def drained(scheduler: StepScheduler[float], costs: CostTable) -> tuple[float, dict[str, float]]:
    """Seconds until the scheduler is empty, and of each image, when turns take just these."""
    account, spent = GpuTimeAccount(), dict[str, float]()
    while (plan := next_plan(scheduler)) is not None:
        shallow = plan.work is WorkKind.STEP and plan.samples[0].is_shallow
        kind: Any = TurnKind(plan.work, ModelKey(Stage.BASE), 64, 64, plan.lanes, shallow=shallow)
        if plan.work is WorkKind.CONDITION:
            kind = replace(PROMPT, rows=plan.samples[0].spec.rows)
        elif plan.work is WorkKind.DECODE:
            kind = DECODE
        account.charge(plan, costs.seconds(kind), is_usual=True)
        for finished in scheduler.settle(plan, run_plan(plan)):
            spent[finished.id] = account.finish(finished.id, wasted=False).measured
    return account.total_seconds, spent


QUEUES = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1.0, 5.0])), max_size=20)
INTERVALS = st.sampled_from([None, (0.0, 1.0), (0.5, 3.0), (2.0, 10_000.0)])


@given(
    QUEUES, st.sampled_from([BatchSize(1, (2,)), BatchSize(3, (1, 2, 4, 8)), SIZE, BatchSize(3)])
)
def test_a_forecast_is_what_the_scheduler_takes_afterwards(
    queue: list[tuple[int, float]], size: BatchSize
) -> None:
    rows = {replace(STEP, rows=count): 1.0 + count / 8 for count in range(1, 9)}
    costs = CostTable({**rows, PROMPT: 0.25, DECODE: 0.5}, {ModelKey(Stage.BASE): size})
    samples = [sample(str(n), steps, guidance=g) for n, (steps, g) in enumerate(queue)]
    scheduler = scheduler_with(size, *samples)
    result = forecast(scheduler.pending(), replace(costs, seconds_by_turn=costs.seconds_by_turn))
    seconds, spent = drained(scheduler, costs)
    assert result.seconds == pytest.approx(seconds)
    assert result.shares == pytest.approx(spent)


@given(st.lists(st.tuples(st.integers(1, 12), INTERVALS), max_size=12), st.booleans())
def test_a_forecast_knows_which_steps_need_fewer_rows_and_which_are_shallow(
    queue: list[tuple[int, tuple[float, float] | None]], cached: bool
) -> None:
    rows = {replace(STEP, rows=count): 1.0 + count / 8 for count in range(1, 9)}
    rows |= {replace(kind, shallow=True): seconds / 16 for kind, seconds in rows.items()}
    costs = CostTable({**rows, PROMPT: 0.25, DECODE: 0.5}, {ModelKey(Stage.BASE): BatchSize(4)})
    cache = StepCache.DEEPCACHE if cached else StepCache.OFF
    samples = [
        sample(str(n), steps, guidance_interval=interval, cache=cache)
        for n, (steps, interval) in enumerate(queue)
    ]
    scheduler = scheduler_with(BatchSize(4), *samples)
    result = forecast(scheduler.pending(), costs)
    seconds, spent = drained(scheduler, costs)
    assert result.seconds == pytest.approx(seconds)
    assert result.shares == pytest.approx(spent)


def test_an_image_alone_pays_less_for_unguided_and_for_shallow_steps() -> None:
    rows = {replace(STEP, rows=1): 0.5, replace(STEP, rows=2): 1.0}
    shallow = {replace(kind, shallow=True): seconds / 10 for kind, seconds in rows.items()}
    costs = CostTable(
        {**rows, **shallow, PROMPT: 0.0, DECODE: 0.0}, {ModelKey(Stage.BASE): BatchSize(1)}
    )
    late = [owed(sample("a", 10, guidance_interval=(0.0, 1.0)))]
    guided = sum(sigma <= 1.0 for sigma in late[0].sample.schedule.sigmas[:10])
    assert image_seconds(late, costs, images=1) == pytest.approx(10 * 0.5 + guided * 0.5)
    assert amortized_seconds(late, costs) == image_seconds(late, costs, images=1)
    deep = [owed(sample("a", 10, cache=StepCache.DEEPCACHE))]
    assert image_seconds(deep, costs, images=1) == pytest.approx(4 * 1.0 + 6 * 0.1)
    assert mean_step_seconds(deep[0].sample, costs) == pytest.approx((4 * 1.0 + 6 * 0.1) / 10)
