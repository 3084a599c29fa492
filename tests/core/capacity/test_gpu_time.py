"""The GPU time of images, in turns whose length is known."""

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import turn_kind
from serve_app.core.capacity.gpu_time import GpuTime, GpuTimeAccount
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind
from tests.support.scheduler_runs import sample

GUIDED, PLAIN = sample("guided"), sample("plain", guidance=1)
STEP = Plan(WorkKind.STEP, (GUIDED, PLAIN), 8)


def test_a_turn_is_shared_by_rows_and_the_shares_add_up_to_the_total() -> None:
    account = GpuTimeAccount()
    account.charge(STEP, 3.0, is_usual=True)
    account.charge(Plan(WorkKind.DECODE, (PLAIN,)), 0.5, is_usual=True)
    assert account.finish("guided", wasted=False).measured == 2.0
    assert account.finish("plain", wasted=False).measured == 1.5
    assert (account.total_seconds, account.wasted_seconds) == (3.5, 0)


def test_the_time_of_a_cancelled_image_is_wasted_and_counts_once() -> None:
    account = GpuTimeAccount()
    account.charge(STEP, 3.0, is_usual=True)
    assert account.finish("plain", wasted=True).measured == 1.0
    assert account.finish("plain", wasted=True) == GpuTime()
    assert account.wasted_seconds == 1.0


def test_only_completed_turns_update_the_costs() -> None:
    account = GpuTimeAccount()
    account.set_batch_sizes({ModelKey(Stage.BASE): BatchSize(4, (8,))})
    account.charge(STEP, 3.0, is_usual=True)
    account.charge(STEP, 9.0, is_usual=False)
    account.charge(
        Plan(WorkKind.LOAD, (PLAIN,), load=ModelKey(Stage.BASE, "owl")), 7.0, is_usual=True
    )
    costs = account.cost_table
    assert costs.seconds(turn_kind(WorkKind.STEP, PLAIN, lanes=8)) == 3.0
    assert costs.seconds(turn_kind(WorkKind.LOAD, PLAIN, load=ModelKey(Stage.BASE, "owl"))) == 7.0
    assert costs.batch_size(ModelKey(Stage.BASE)) == BatchSize(4, (8,))
    assert account.total_seconds == pytest.approx(19)


def test_a_step_in_more_lanes_than_planned_is_what_such_a_plan_costs_next_time() -> None:
    account = GpuTimeAccount()
    account.set_batch_sizes({ModelKey(Stage.BASE): BatchSize(4, (2, 4, 8))})
    account.charge(Plan(WorkKind.STEP, (GUIDED,), 2), 3.0, lanes=4)
    steps = [turn_kind(WorkKind.STEP, GUIDED, lanes=lanes) for lanes in (2, 4)]
    assert [account.cost_table.seconds(step) for step in steps] == [3.0, 3.0]
    account.charge(Plan(WorkKind.STEP, (GUIDED, PLAIN), 4), 5.0, lanes=4)
    assert account.cost_table.seconds(steps[0]) == 3.0


def test_an_image_s_time_is_predicted_by_the_costs_of_its_arrival() -> None:
    account = GpuTimeAccount()
    account.charge(Plan(WorkKind.STEP, (PLAIN,), 8), 1.0, is_usual=True)
    for seconds in (2.0, 3.0, 4.0):
        account.charge(STEP, seconds, is_usual=True)
    spent = account.finish("guided", wasted=False)
    assert spent.predicted == pytest.approx(3 * 1.0 * 2 / 3)
    assert spent.measured == pytest.approx(9.0 * 2 / 3)


def test_seconds_are_kept_of_the_callers_that_were_served_last() -> None:
    account, first = GpuTimeAccount(), Caller("0")
    account.charge(Plan(WorkKind.DECODE, (sample("0", caller=first),)), 1.0, is_usual=True)
    for number in range(1, 64):
        image = sample(str(number), caller=Caller(str(number)))
        account.charge(Plan(WorkKind.DECODE, (image,)), 1.0, is_usual=False)
    account.charge(Plan(WorkKind.DECODE, (sample("0", caller=first),)), 2.0, is_usual=True)
    assert account.seconds_by_caller[first] == 3.0
    account.charge(
        Plan(WorkKind.DECODE, (sample("new", caller=Caller("new")),)), 1.0, is_usual=True
    )
    assert len(account.seconds_by_caller) == 64
    assert Caller("1") not in account.seconds_by_caller
    assert account.seconds_by_caller[first] == 3.0
