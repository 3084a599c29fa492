"""Steps that are settled, and charged as much as is expected, before the device has done them."""

import pytest

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import StepCache
from serve_app.core.scheduling.device_shares import DeviceShares
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import Plan, WorkKind
from tests.support.scheduler_runs import next_plan, run_plan, sample, scheduler_of, whole_segment

A, B = Caller("a"), Caller("b", weight=2.0)


def first_step(scheduler: StepScheduler[float]) -> Plan[float]:
    while (plan := next_plan(scheduler)) is not None and plan.work is not WorkKind.STEP:
        scheduler.settle(plan, run_plan(plan))
    assert plan is not None
    return plan


def test_who_was_charged_what_was_expected_is_charged_what_it_took() -> None:
    samples = (sample("1", caller=A), sample("2", guidance=1.0, caller=B), sample("3", caller=A))
    plan, found = Plan(WorkKind.STEP, samples, 8), []
    for expected, took in ((3.0, 3.0), (1.0, 3.0), (7.0, 3.0)):
        shares = DeviceShares()
        for waiting in samples:
            shares.enter(waiting.caller)
        shares.charge(plan, expected, lambda sample: 2)
        shares.correct(plan, expected, took)
        found.append(
            (
                *(shares.turn_time(caller) for caller in (A, B)),
                *(shares.place_time(caller) for caller in (A, B)),
                *(shares.place_seconds(sample) for sample in samples),
                shares.limit(A),
            )
        )
    for corrected in found[1:]:
        assert corrected == pytest.approx(found[0])


def test_the_next_step_can_be_planned_ahead_until_a_sample_s_last_one() -> None:
    scheduler = scheduler_of(sample("long", 4), sample("short", 2))
    followed = []
    while (plan := next_plan(scheduler)) is not None:
        if plan.work is WorkKind.STEP:
            followed.append(scheduler.can_be_followed(plan))
        scheduler.charge(plan, 1.0)
        scheduler.settle(plan, run_plan(plan))
    assert followed == [True, False, True, False]


def test_nothing_is_planned_ahead_of_a_suspect_s_step_or_of_a_retry() -> None:
    scheduler = scheduler_of()
    suspect = sample("suspect")
    scheduler.add(suspect, whole_segment(suspect), alone_steps=2)
    assert not scheduler.can_be_followed(first_step(scheduler))
    scheduler = scheduler_of(sample("a"), sample("b"))
    plan = first_step(scheduler)
    assert scheduler.can_be_followed(plan)
    scheduler.settle_failed(plan)
    for _ in plan.samples:
        retry = next_plan(scheduler)
        assert retry is not None
        assert not scheduler.can_be_followed(retry)
        scheduler.settle(retry, run_plan(retry))
    assert scheduler.can_be_followed(first_step(scheduler))


@pytest.mark.parametrize("cache", list(StepCache))
def test_a_step_that_is_taken_back_is_taken_again_by_each_sample_alone(cache: StepCache) -> None:
    scheduler = scheduler_of(sample("a", 9, cache=cache), sample("b", 9, cache=cache))
    plan = first_step(scheduler)
    for _ in range(3):
        scheduler.charge(plan, 1.0)
        scheduler.settle(plan, run_plan(plan))
        before, plan = plan, first_step(scheduler)
    scheduler.take_back(before)
    again: list[Sample[float]] = []
    for _ in before.samples:
        retry = next_plan(scheduler)
        assert retry is not None
        again += retry.samples
        scheduler.charge(retry, 1.0)
        scheduler.settle(retry, run_plan(retry))
    assert again == list(before.samples)
    assert {s.id: s.index for s in scheduler.samples()} == {s.id: s.index for s in plan.samples}
