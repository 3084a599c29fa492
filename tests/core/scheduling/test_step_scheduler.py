"""The scheduler, fed with samples whose latents are plain numbers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, with_model, with_prompt_info
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, WorkKind
from tests.support.keys import base_key
from tests.support.scheduler_runs import (
    next_plan,
    run_plan,
    sample,
    scheduler_of,
    turns,
    whole_segment,
)


def test_an_image_is_conditioned_stepped_and_decoded() -> None:
    works = [plan.work for plan, _ in turns(scheduler_of(sample("a", 2)))]
    assert works == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.STEP, WorkKind.DECODE]


def test_a_base_image_is_encoded_before_its_first_step() -> None:
    works = [plan.work for plan, _ in turns(scheduler_of(sample("a", 4, strength=0.5)))]
    assert works == [
        WorkKind.CONDITION,
        WorkKind.ENCODE,
        WorkKind.STEP,
        WorkKind.STEP,
        WorkKind.DECODE,
    ]


def test_a_newcomer_steps_with_the_others_at_the_next_step() -> None:
    scheduler = scheduler_of(sample("old", 50))
    running = turns(scheduler)
    for _ in range(10):
        next(running)
    newcomer = sample("new", 4)
    scheduler.add(newcomer, whole_segment(newcomer))
    seen = [next(running)[0] for _ in range(2)]
    assert [p.work for p in seen] == [WorkKind.CONDITION, WorkKind.STEP]
    assert {s.id for s in seen[1].samples} == {"old", "new"}


def test_a_short_image_is_done_long_before_the_long_one_beside_it() -> None:
    order = [
        id
        for _, done in turns(scheduler_of(sample("long", 150), sample("short", 4)))
        for id in done
    ]
    assert order == ["short", "long"]


def test_when_lanes_are_full_the_shorter_newcomer_goes_first() -> None:
    scheduler = scheduler_of(sample("long", 100), images=1, lanes=2)
    running = turns(scheduler)
    for _ in range(20):
        next(running)
    newcomer = sample("short", 4)
    scheduler.add(newcomer, whole_segment(newcomer))
    order = [id for _, done in running for id in done]
    assert order == ["short", "long"]


def test_a_long_image_is_not_starved_by_short_ones() -> None:
    scheduler = scheduler_of(sample("long", 30), images=1, lanes=2)
    running, number, done_at = turns(scheduler), 0, None
    for turn, (_, done) in enumerate(running):
        if "long" in done:
            done_at = turn
            break
        if len(scheduler) < 3:
            number += 1
            short = sample(f"short {number}", 4)
            scheduler.add(short, whole_segment(short))
    assert done_at is not None
    assert done_at < 200


@pytest.mark.parametrize(("lanes", "expected"), [(8, 8), (0, 3)])
def test_lanes_are_fixed_in_strict_mode_and_counted_in_fast(lanes: int, expected: int) -> None:
    scheduler = scheduler_of(sample("a"), sample("b", guidance=1.0), lanes=lanes)
    plans = [plan for plan, _ in turns(scheduler) if plan.work is WorkKind.STEP]
    assert {plan.lanes for plan in plans} == {expected}


@pytest.mark.parametrize(("guidance", "most"), [(5.0, 3), (1.0, 6)])
def test_no_more_rows_step_together_than_the_allowed_images_have_with_guidance(
    guidance: float, most: int
) -> None:
    scheduler = scheduler_of(
        *(sample(str(i), guidance=guidance) for i in range(7)), images=3, lanes=8
    )
    assert max(len(p.samples) for p, _ in turns(scheduler) if p.work is WorkKind.STEP) == most


def test_shapes_never_share_a_batch_and_both_end() -> None:
    scheduler = scheduler_of(sample("a", 6), sample("b", 6, side=128), sample("c", 9))
    done: list[str] = []
    for plan, ended in turns(scheduler):
        assert len({s.spec.latent_shape for s in plan.samples}) == 1
        done += ended
    assert sorted(done) == ["a", "b", "c"]


def test_prompts_of_other_lengths_never_share_a_batch_and_all_end() -> None:
    lengths = {"a": 1, "b": 3, "c": 1, "d": 3}
    scheduler = scheduler_of(
        *(with_prompt_info(sample(id, 6), count, ()) for id, count in lengths.items())
    )
    done, batches = list[str](), []
    for plan, ended in turns(scheduler):
        if plan.work is WorkKind.STEP:
            batches.append({lengths[s.id] for s in plan.samples})
        done += ended
    assert all(len(batch) == 1 for batch in batches)
    assert len(batches) == 12
    assert sorted(done) == ["a", "b", "c", "d"]


def test_decoding_and_stepping_take_turns() -> None:
    scheduler = scheduler_of(
        *(sample(str(i), 2) for i in range(4)), sample("long", 20), images=5, lanes=16
    )
    works = [plan.work for plan, _ in turns(scheduler)]
    first = works.index(WorkKind.DECODE)
    assert works[first : first + 8] == [WorkKind.DECODE, WorkKind.STEP] * 4


def test_a_cancelled_sample_is_not_in_the_next_plan() -> None:
    scheduler = scheduler_of(sample("a", 50), sample("b", 4))
    running = turns(scheduler)
    for _ in range(3):
        next(running)
    assert scheduler.cancel("a")
    assert "a" not in scheduler
    assert all("a" not in {s.id for s in plan.samples} for plan, _ in running)
    assert not scheduler.cancel("a")


def test_an_evicted_sample_is_returned_unchanged_and_continues_elsewhere() -> None:
    scheduler = scheduler_of(sample("a", 10))
    running = turns(scheduler)
    for _ in range(4):
        next(running)
    left = scheduler.remove("a")
    assert left.index == 3
    assert len(scheduler) == 0
    assert next_plan(scheduler) is None
    again = scheduler_of(left)
    works = [plan.work for plan, _ in turns(again)]
    assert works == [WorkKind.CONDITION, *[WorkKind.STEP] * 7, WorkKind.DECODE]
    with pytest.raises(KeyError):
        scheduler.remove("a")


def test_a_segment_that_is_not_the_last_ends_without_a_decode() -> None:
    scheduler: StepScheduler[float] = StepScheduler({ModelKey(Stage.BASE): BatchSize(4, (8,))})
    scheduler.add(sample("a", 10), StageSegment(Stage.BASE, 3, last=False))
    works = [plan.work for plan, _ in turns(scheduler)]
    assert works == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.STEP, WorkKind.STEP]


def test_a_last_segment_without_steps_is_only_decoded() -> None:
    stepped = replace(sample("a", 4), index=4, latents=1.0)
    assert [plan.work for plan, _ in turns(scheduler_of(stepped))] == [WorkKind.DECODE]


def test_a_sample_is_taken_once_and_never_without_a_step_to_take() -> None:
    scheduler = scheduler_of(sample("a"))
    with pytest.raises(ValueError, match="already added"):
        scheduler.add(sample("a"), whole_segment(sample("a")))
    done = replace(sample("b", 4), index=4, latents=1.0)
    with pytest.raises(ValueError, match="no step to take"):
        scheduler.add(done, StageSegment(Stage.BASE, 4, last=False))


@pytest.mark.parametrize(("images", "lanes"), [(0, 8), (1, 1)])
def test_a_batch_size_below_one_image_is_an_error(images: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="at least one image and its two rows"):
        BatchSize(images, (lanes,))


def test_a_batch_has_the_fewest_lanes_that_hold_its_rows() -> None:
    size = BatchSize(4, (2, 6, 8))
    assert [size.lanes(rows) for rows in range(1, 9)] == [2, 2, 6, 6, 6, 6, 8, 8]
    assert [BatchSize(4).lanes(rows) for rows in (1, 8)] == [1, 8]
    with pytest.raises(ValueError, match="9 rows do not fit"):
        size.lanes(9)
    for counts in ((2, 2, 8), (8, 2), (0, 8)):
        with pytest.raises(ValueError, match="must ascend from 1"):
            BatchSize(1, counts)


def test_the_repr_shows_the_schedulers_state() -> None:
    scheduler = scheduler_of(sample("a", 1), sample("b", 9, side=128), sample("c", strength=0.5))
    assert repr(scheduler) == (
        "<StepScheduler 3 waiting | 0 stepping in 0 batch keys | 0 decoding | 1 callers>"
    )
    running = turns(scheduler)
    for _ in range(4):
        next(running)
    assert repr(scheduler) == (
        "<StepScheduler 1 waiting | 1 stepping in 1 batch keys | 1 decoding | 1 callers>"
    )
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
    arrivals: list[tuple[int, float, int, bool]], images: int, strict: bool
) -> None:
    counts = (2, 2 * images) if images > 1 else (2,)
    scheduler: StepScheduler[float] = StepScheduler(
        {ModelKey(Stage.BASE): BatchSize(images, counts if strict else ())}
    )
    for number, (steps, guidance, side, from_image) in enumerate(arrivals):
        arrival = sample(
            str(number),
            steps,
            guidance=guidance,
            side=side,
            strength=1.0 if from_image else None,
        )
        scheduler.add(arrival, whole_segment(arrival))
    steps_taken = [0] * len(arrivals)
    done: list[str] = []
    for plan, ended in turns(scheduler):
        if plan.work is WorkKind.STEP:
            assert sum(s.spec.rows for s in plan.samples) <= plan.lanes
            for stepped in plan.samples:
                steps_taken[int(stepped.id)] += 1
        done += ended
    assert sorted(done, key=int) == [str(n) for n in range(len(arrivals))]
    assert steps_taken == [steps for steps, *_ in arrivals]


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([64, 128]), st.sampled_from("ab"), st.booleans()),
    max_size=8,
)


@settings(deadline=None)
@given(ARRIVALS, st.lists(st.integers(0, 3), max_size=30))
def test_planning_twice_gives_the_same_plan_and_changes_nothing(
    arrivals: list[tuple[int, int, str, bool]], pauses: list[int]
) -> None:
    """Two schedulers take the same samples; one plans several times a turn."""
    first, second = base_key("a"), base_key("b")
    sizes = {first: BatchSize(2, (4,)), second: BatchSize(2, (4,))}
    resident = [first]
    once: StepScheduler[float] = StepScheduler({first: sizes[first]})
    often: StepScheduler[float] = StepScheduler({first: sizes[first]})
    waiting, pause = list(enumerate(arrivals)), iter(pauses)
    while waiting or len(once):
        if waiting and not next(pause, 0):
            number, (steps, side, model, from_image) = waiting.pop()
            strength = 1.0 if from_image else None
            arrived = sample(str(number), steps, side=side, strength=strength)
            arrived = with_model(arrived, base_key(model))
            for scheduler in (once, often):
                scheduler.add(arrived, whole_segment(arrived))
        once.admit_ready()
        often.admit_ready()
        books = repr(often), often.samples(), often.pending()
        plan = once.plan()
        assert [often.plan() for _ in range(3)] == [plan] * 3
        assert (repr(often), often.samples(), often.pending()) == books
        if plan is None:
            continue
        if plan.work is WorkKind.LOAD:
            results = list(plan.samples)
            resident = [key for key in resident if key not in plan.evict]
            resident.append(plan.samples[0].model_key)
            for scheduler in (once, often):
                scheduler.set_resident({key: sizes[key] for key in resident})
        else:
            results = run_plan(plan)
        assert once.settle(plan, results) == often.settle(plan, results)
    assert len(often) == 0


def test_images_with_a_step_cache_come_into_step_and_share_their_shallow_steps() -> None:
    late = sample("late", 12, cache=StepCache.DEEPCACHE)
    scheduler = scheduler_of(sample("early", 12, cache=StepCache.DEEPCACHE))
    running, shallow, full = turns(scheduler), list[set[str]](), list[set[str]]()
    for _ in range(3):
        next(running)
    scheduler.add(late, whole_segment(late))
    for plan, _ in running:
        if plan.work is WorkKind.STEP:
            assert len({s.is_shallow for s in plan.samples}) == 1
            ids = {s.id for s in plan.samples}
            (shallow if plan.samples[0].is_shallow else full).append(ids)
    assert shallow.count({"early", "late"}) >= 6
    assert full.count({"early", "late"}) >= 3


def test_steps_outside_the_guidance_interval_give_their_rows_to_others() -> None:
    specs = [sample(str(number), 4, guidance_interval=(0.0, 1.0)) for number in range(8)]
    batches = [
        (len(plan.samples), sum(s.rows for s in plan.samples))
        for plan, _ in turns(scheduler_of(*specs))
        if plan.work is WorkKind.STEP
    ]
    assert batches[0] == (8, 8)
    assert (4, 8) in batches
