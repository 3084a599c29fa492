"""Steps that failed: their samples take them again, each alone, and then step together."""

from typing import Any

from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import Plan, WorkKind
from tests.support.scheduler_runs import next_plan, run_plan, sample, scheduler_of, whole_segment


def failed_step(*ids: str) -> tuple[StepScheduler[Any], Plan[Any]]:
    """Return a scheduler and the plan of a step of these samples, about to be settled."""
    scheduler = scheduler_of(*(sample(id) for id in ids))
    for _ in ids:
        turn(scheduler)
    plan = next_plan(scheduler)
    assert plan is not None
    assert plan.work is WorkKind.STEP
    return scheduler, plan


def turn(scheduler: StepScheduler[Any]) -> str:
    plan = next_plan(scheduler)
    assert plan is not None
    scheduler.charge(plan, 1.0)
    scheduler.settle(plan, run_plan(plan))
    assert not plan.alone  # no quarantine: nobody is suspected of killing the replica
    return f"{plan.work} {' '.join(sample.id for sample in plan.samples)}"


def test_each_sample_of_a_failed_step_takes_it_again_alone_before_all_others() -> None:
    scheduler, plan = failed_step("a", "b", "c")
    scheduler.settle_failed(plan)
    newcomer = sample("new")
    scheduler.add(newcomer, whole_segment(newcomer))
    turns = [turn(scheduler) for _ in range(5)]
    assert turns == ["step a", "step b", "step c", "condition new", "step a b c new"]


def test_a_sample_that_fails_alone_leaves_and_the_next_one_has_its_turn() -> None:
    scheduler, plan = failed_step("a", "b", "c")
    scheduler.settle_failed(plan)
    alone = next_plan(scheduler)
    assert alone is not None
    scheduler.cancel("a")
    scheduler.settle(alone, ())
    assert [turn(scheduler) for _ in range(3)] == ["step b", "step c", "step b c"]


def test_a_retry_has_the_lanes_of_every_other_step() -> None:
    scheduler, plan = failed_step("a", "b")
    scheduler.settle_failed(plan)
    alone = next_plan(scheduler)
    assert alone is not None
    assert alone.lanes == plan.lanes == 8


def test_a_sample_that_has_left_is_not_retried() -> None:
    scheduler, plan = failed_step("a", "b")
    scheduler.cancel("a")
    scheduler.settle_failed(plan)
    assert [turn(scheduler) for _ in range(2)] == ["step b", "step b"]
