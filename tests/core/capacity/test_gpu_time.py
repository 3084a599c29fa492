import pytest

from serve_app.core.capacity.cost_model import turn_of
from serve_app.core.capacity.gpu_time import Account, Spent
from serve_app.core.scheduling.step_scheduler import BatchSize, Plan, Work
from tests.core.scheduling.test_step_scheduler import sample

GUIDED, PLAIN = sample("guided"), sample("plain", guidance=1)
STEP = Plan(Work.STEP, (GUIDED, PLAIN), 8)


def test_what_images_spend_is_shared_by_rows_and_adds_up_to_what_the_engine_was_busy() -> None:
    account = Account()
    account.charge(STEP, 3.0, whole=True)
    account.charge(Plan(Work.DECODE, (PLAIN,)), 0.5, whole=True)
    assert account.leave("guided", wasted=False).seconds == 2.0
    assert account.leave("plain", wasted=False).seconds == 1.5
    assert (account.busy, account.wasted) == (3.5, 0)


def test_what_a_cancelled_image_spent_was_wasted_and_is_told_once() -> None:
    account = Account()
    account.charge(STEP, 3.0, whole=True)
    assert account.leave("plain", wasted=True).seconds == 1.0
    assert account.leave("plain", wasted=True) == Spent()
    assert account.wasted == 1.0


def test_turns_that_were_made_whole_teach_what_turns_take() -> None:
    account = Account()
    account.hold({"": BatchSize(4, 8)})
    account.charge(STEP, 3.0, whole=True)
    account.charge(STEP, 9.0, whole=False)
    account.charge(Plan(Work.LOAD, (PLAIN,), load="owl"), 7.0, whole=True)
    prices = account.prices
    assert prices.seconds(turn_of(Work.STEP, PLAIN, lanes=8)) == 3.0
    assert prices.seconds(turn_of(Work.LOAD, PLAIN, load="owl")) == 7.0
    assert prices.size("") == BatchSize(4, 8)
    assert account.busy == pytest.approx(19)


def test_an_image_s_time_is_foretold_by_the_prices_of_when_it_came() -> None:
    account = Account()
    account.charge(Plan(Work.STEP, (PLAIN,), 8), 1.0, whole=True)
    for seconds in (2.0, 3.0, 4.0):
        account.charge(STEP, seconds, whole=True)
    spent = account.leave("guided", wasted=False)
    assert spent.foretold == pytest.approx(3 * 1.0 * 2 / 3)
    assert spent.seconds == pytest.approx(9.0 * 2 / 3)
