"""Samples that must run alone: one after the other, ahead of all others, for a few steps."""

from typing import Any

from serve_app.core.scheduling.quarantine import Quarantine
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind
from tests.support.images import SDXL, image, segment_of
from tests.support.scheduler_runs import run_plan


def scheduler_of(*ids: str, suspects: tuple[str, ...] = ()) -> StepScheduler[Any]:
    scheduler: StepScheduler[Any] = StepScheduler({SDXL: BatchSize(4, (8,))})
    for id in (*ids, *suspects):
        sample = image(id, 10)
        scheduler.add(sample, segment_of(sample), alone_steps=3 * (id in suspects))
    return scheduler


def turn(scheduler: StepScheduler[Any]) -> Plan[Any]:
    """Run one turn; return its plan."""
    scheduler.admit_ready()
    plan = scheduler.plan()
    assert plan is not None
    scheduler.settle(plan, run_plan(plan))
    return plan


def who(plan: Plan[Any]) -> tuple[WorkKind, str]:
    return plan.work, " ".join(sample.id for sample in plan.samples)


def test_suspects_run_alone_one_after_the_other_and_then_beside_all() -> None:
    scheduler = scheduler_of("a", "b", suspects=("x", "y"))
    plans = [turn(scheduler) for _ in range(8)]
    alone = [(WorkKind.CONDITION, 1), *[(WorkKind.STEP, 1)] * 3]
    assert [(plan.work, len(plan.samples)) for plan in plans] == alone * 2
    assert [plan.samples[0].id for plan in plans] == [*"xxxxyyyy"]
    assert all(plan.alone for plan in plans)
    assert not scheduler.quarantine.current
    later = [turn(scheduler) for _ in range(4)]
    assert who(later[2])[0] is WorkKind.STEP
    assert not any(plan.alone for plan in later)


def test_a_lone_suspect_has_the_lanes_of_a_full_batch_in_strict_mode_only() -> None:
    plans = [turn(scheduler_of(suspects=("x",))) for _ in range(1)]
    assert plans[0].lanes == 0  # a prompt
    for size, lanes in ((BatchSize(4, (8,)), 8), (BatchSize(4), 2)):
        scheduler: StepScheduler[Any] = StepScheduler({SDXL: size})
        sample = image("x")
        scheduler.add(sample, segment_of(sample), alone_steps=3)
        assert [turn(scheduler).lanes for _ in range(2)] == [0, lanes]


def test_a_suspect_stays_alone_until_its_image_is_decoded() -> None:
    scheduler: StepScheduler[Any] = StepScheduler({SDXL: BatchSize(4, (8,))})
    short, other = image("x", 2), image("a")
    for sample, steps in ((other, 0), (short, 7)):
        scheduler.add(sample, segment_of(sample), alone_steps=steps)
    works = [who(turn(scheduler)) for _ in range(5)]
    assert works[:4] == [
        (WorkKind.CONDITION, "x"),
        (WorkKind.STEP, "x"),
        (WorkKind.STEP, "x"),
        (WorkKind.DECODE, "x"),
    ]
    assert works[4] == (WorkKind.CONDITION, "a")


def test_others_run_while_a_suspect_s_model_is_not_in_memory() -> None:
    scheduler: StepScheduler[Any] = StepScheduler({SDXL: BatchSize(4, (8,))})
    other, suspect = image("a"), image("x", model="another")
    for sample, steps in ((other, 0), (suspect, 3)):
        scheduler.add(sample, segment_of(sample), alone_steps=steps)
    assert who(turn(scheduler)) == (WorkKind.CONDITION, "a")


def test_a_suspect_that_leaves_makes_way_for_the_next() -> None:
    scheduler = scheduler_of("a", suspects=("x", "y"))
    turn(scheduler)
    scheduler.cancel("x")
    assert who(turn(scheduler)) == (WorkKind.CONDITION, "y")


def test_a_quarantine_ends_at_a_step() -> None:
    quarantine = Quarantine()
    quarantine.add("x", 7)
    quarantine.settle("x", 6)
    assert "x" in quarantine
    assert quarantine.blocks("x") is False
    quarantine.settle("x", 7)
    quarantine.settle("unknown", 7)
    assert "x" not in quarantine
    assert quarantine.current is None
