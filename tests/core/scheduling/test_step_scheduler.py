"""The scheduler, fed with samples whose latents are plain numbers."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import (
    Sample,
    StageSegment,
    after_step,
    new_sample,
    stage_segments,
    with_latents,
    with_prompt_info,
)
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind

NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)


def sample(
    id: str,
    steps: int = 4,
    *,
    guidance: float = 5.0,
    side: int = 64,
    strength: float | None = None,
) -> Sample[float]:
    spec = ImageSpec(
        prompt="a fox",
        seed=0,
        width=side,
        height=64,
        steps=steps,
        guidance=guidance,
        strength=strength,
    )
    schedule = make_schedule(NOISE, Sampler.EULER, steps, strength, 1.0)
    source = None if strength is None else bytes(side * 64 * 3)
    return new_sample(id, spec, schedule, Stage.BASE, ImageInputs(source))


def whole(one: Sample[float]) -> StageSegment:
    return stage_segments(one.schedule, 1.0, refiner=False)[0]


def run(plan: Plan[float]) -> list[Sample[float]]:
    """What a model would make of a plan."""
    if plan.work is WorkKind.STEP:
        return [after_step(s, 0.0, None, s.noise_draws) for s in plan.samples]
    (one,) = plan.samples
    fresh = plan.work is WorkKind.ENCODE or (
        plan.work is WorkKind.CONDITION and one.inputs.init_image is None
    )
    return [with_latents(one, 1.0, 1) if fresh and one.latents is None else one]


def turns(scheduler: StepScheduler[float]) -> Iterator[tuple[Plan[float], tuple[str, ...]]]:
    """Every turn until nothing is left, and who was done after it."""
    while (plan := scheduler.plan()) is not None:
        yield plan, tuple(s.id for s in scheduler.settle(plan, run(plan)))


def filled(*samples: Sample[float], images: int = 4, lanes: int = 8) -> StepScheduler[float]:
    scheduler: StepScheduler[float] = StepScheduler(
        {ModelKey(Stage.BASE): BatchSize(images, lanes)}
    )
    for one in samples:
        scheduler.add(one, whole(one))
    return scheduler


def test_an_image_is_conditioned_stepped_and_decoded() -> None:
    works = [plan.work for plan, _ in turns(filled(sample("a", 2)))]
    assert works == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.STEP, WorkKind.DECODE]


def test_a_base_image_is_encoded_before_its_first_step() -> None:
    works = [plan.work for plan, _ in turns(filled(sample("a", 4, strength=0.5)))]
    assert works == [
        WorkKind.CONDITION,
        WorkKind.ENCODE,
        WorkKind.STEP,
        WorkKind.STEP,
        WorkKind.DECODE,
    ]


def test_a_newcomer_steps_with_the_others_at_the_next_step() -> None:
    scheduler = filled(sample("old", 50))
    running = turns(scheduler)
    for _ in range(10):
        next(running)
    newcomer = sample("new", 4)
    scheduler.add(newcomer, whole(newcomer))
    seen = [next(running)[0] for _ in range(2)]
    assert [p.work for p in seen] == [WorkKind.CONDITION, WorkKind.STEP]
    assert {s.id for s in seen[1].samples} == {"old", "new"}


def test_a_short_image_is_done_long_before_the_long_one_beside_it() -> None:
    order = [
        id for _, done in turns(filled(sample("long", 150), sample("short", 4))) for id in done
    ]
    assert order == ["short", "long"]


def test_when_lanes_are_full_the_shorter_newcomer_goes_first() -> None:
    scheduler = filled(sample("long", 100), images=1, lanes=2)
    running = turns(scheduler)
    for _ in range(20):
        next(running)
    newcomer = sample("short", 4)
    scheduler.add(newcomer, whole(newcomer))
    order = [id for _, done in running for id in done]
    assert order == ["short", "long"]


def test_a_long_image_is_not_starved_by_short_ones() -> None:
    scheduler = filled(sample("long", 30), images=1, lanes=2)
    running, number, done_at = turns(scheduler), 0, None
    for turn, (_, done) in enumerate(running):
        if "long" in done:
            done_at = turn
            break
        if len(scheduler) < 3:
            number += 1
            short = sample(f"short {number}", 4)
            scheduler.add(short, whole(short))
    assert done_at is not None
    assert done_at < 200


@pytest.mark.parametrize(("lanes", "expected"), [(8, 8), (0, 3)])
def test_lanes_are_fixed_in_strict_mode_and_counted_in_fast(lanes: int, expected: int) -> None:
    scheduler = filled(sample("a"), sample("b", guidance=1.0), lanes=lanes)
    plans = [plan for plan, _ in turns(scheduler) if plan.work is WorkKind.STEP]
    assert {plan.lanes for plan in plans} == {expected}


def test_no_more_images_step_together_than_allowed() -> None:
    scheduler = filled(*(sample(str(i), guidance=1.0) for i in range(7)), images=3, lanes=8)
    assert max(len(p.samples) for p, _ in turns(scheduler) if p.work is WorkKind.STEP) == 3


def test_shapes_never_share_a_batch_and_both_end() -> None:
    scheduler = filled(sample("a", 6), sample("b", 6, side=128), sample("c", 9))
    done = []
    for plan, ended in turns(scheduler):
        assert len({s.spec.latent_shape for s in plan.samples}) == 1
        done += ended
    assert sorted(done) == ["a", "b", "c"]


def test_prompts_of_other_lengths_never_share_a_batch_and_all_end() -> None:
    lengths = {"a": 1, "b": 3, "c": 1, "d": 3}
    scheduler = filled(
        *(with_prompt_info(sample(id, 6), count, ()) for id, count in lengths.items())
    )
    done, batches = [], []
    for plan, ended in turns(scheduler):
        if plan.work is WorkKind.STEP:
            batches.append({lengths[s.id] for s in plan.samples})
        done += ended
    assert all(len(batch) == 1 for batch in batches)
    assert len(batches) == 12
    assert sorted(done) == ["a", "b", "c", "d"]


def test_decoding_and_stepping_take_turns() -> None:
    scheduler = filled(
        *(sample(str(i), 2) for i in range(4)), sample("long", 20), images=5, lanes=16
    )
    works = [plan.work for plan, _ in turns(scheduler)]
    first = works.index(WorkKind.DECODE)
    assert works[first : first + 8] == [WorkKind.DECODE, WorkKind.STEP] * 4


def test_a_cancelled_sample_is_gone_before_the_next_plan() -> None:
    scheduler = filled(sample("a", 50), sample("b", 4))
    running = turns(scheduler)
    for _ in range(3):
        next(running)
    assert scheduler.cancel("a")
    assert "a" not in scheduler
    assert all("a" not in {s.id for s in plan.samples} for plan, _ in running)
    assert not scheduler.cancel("a")


def test_an_evicted_sample_is_handed_back_as_it_stands_and_continues_elsewhere() -> None:
    scheduler = filled(sample("a", 10))
    running = turns(scheduler)
    for _ in range(4):
        next(running)
    left = scheduler.evict("a")
    assert left.index == 3
    assert len(scheduler) == 0
    assert scheduler.plan() is None
    again = filled(left)
    works = [plan.work for plan, _ in turns(again)]
    assert works == [WorkKind.CONDITION, *[WorkKind.STEP] * 7, WorkKind.DECODE]
    with pytest.raises(KeyError):
        scheduler.evict("a")


def test_a_leg_that_is_not_the_last_ends_without_a_decode() -> None:
    scheduler: StepScheduler[float] = StepScheduler({ModelKey(Stage.BASE): BatchSize(4, 8)})
    scheduler.add(sample("a", 10), StageSegment(Stage.BASE, 3, last=False))
    works = [plan.work for plan, _ in turns(scheduler)]
    assert works == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.STEP, WorkKind.STEP]


def test_a_last_leg_without_steps_is_only_decoded() -> None:
    one = replace(sample("a", 4), index=4, latents=1.0)
    assert [plan.work for plan, _ in turns(filled(one))] == [WorkKind.DECODE]


def test_a_sample_is_taken_once_and_never_without_a_step_to_take() -> None:
    scheduler = filled(sample("a"))
    with pytest.raises(ValueError, match="already here"):
        scheduler.add(sample("a"), whole(sample("a")))
    done = replace(sample("b", 4), index=4, latents=1.0)
    with pytest.raises(ValueError, match="no step to take"):
        scheduler.add(done, StageSegment(Stage.BASE, 4, last=False))


@pytest.mark.parametrize(("images", "lanes"), [(0, 8), (1, 1)])
def test_a_batch_without_room_for_one_image_cannot_be(images: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        BatchSize(images, lanes)


def test_its_state_can_be_read() -> None:
    scheduler = filled(sample("a", 1), sample("b", 9, side=128), sample("c", strength=0.5))
    assert repr(scheduler) == ("<StepScheduler 3 waiting | 0 stepping in 0 shapes | 0 decoding>")
    running = turns(scheduler)
    for _ in range(4):
        next(running)
    assert repr(scheduler) == ("<StepScheduler 1 waiting | 1 stepping in 1 shapes | 1 decoding>")
    assert [s.id for s in scheduler.samples()] == ["a", "b", "c"]
    assert [owed.segment.stop for owed in scheduler.pending()] == [1, 9, 4]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),
            st.sampled_from([1.0, 5.0]),
            st.sampled_from([64, 128]),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_everything_accepted_ends_once_with_all_its_steps(
    asked: list[tuple[int, float, int, bool]], images: int, strict: bool
) -> None:
    lanes = 2 * images if strict else 0
    scheduler: StepScheduler[float] = StepScheduler(
        {ModelKey(Stage.BASE): BatchSize(images, lanes)}
    )
    for number, (steps, guidance, side, from_image) in enumerate(asked):
        one = sample(
            str(number),
            steps,
            guidance=guidance,
            side=side,
            strength=1.0 if from_image else None,
        )
        scheduler.add(one, whole(one))
    steps_taken = [0] * len(asked)
    done: list[str] = []
    for plan, ended in turns(scheduler):
        if plan.work is WorkKind.STEP:
            assert sum(s.spec.rows for s in plan.samples) <= plan.lanes
            for one in plan.samples:
                steps_taken[int(one.id)] += 1
        done += ended
    assert sorted(done, key=int) == [str(n) for n in range(len(asked))]
    assert steps_taken == [steps for steps, *_ in asked]
