"""Fair sharing as a fluid, against what can be worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import drained, folded, served_before, total

ADA, BEA, CAT = Caller("ada"), Caller("bea"), Caller("cat", weight=3.0)


def test_a_caller_waits_for_its_own_earlier_work_and_for_as_much_of_each_other() -> None:
    assert served_before({}, ADA, 0, 5) == 0
    assert served_before({ADA: 20}, ADA, 20, 5) == 20
    assert served_before({BEA: 100}, ADA, 0, 5) == 5
    assert served_before({BEA: 2}, ADA, 0, 5) == 2
    assert served_before({ADA: 20, BEA: 100}, ADA, 20, 5) == 20 + 25


def test_a_caller_of_three_times_the_weight_gets_three_times_as_much_meanwhile() -> None:
    assert served_before({CAT: 100}, ADA, 0, 5) == 15
    assert served_before({ADA: 100}, CAT, 0, 6) == 2


def test_what_is_served_is_shared_by_weight_until_a_caller_is_done() -> None:
    assert drained({ADA: 10, BEA: 10}, 6) == {ADA: 7, BEA: 7}
    assert drained({ADA: 1, BEA: 10}, 6) == {BEA: 5}
    assert drained({ADA: 10, CAT: 10}, 4) == {ADA: 9, CAT: 7}
    assert drained({ADA: 1, BEA: 2}, 3) == {}
    assert drained({ADA: 1, BEA: 0}, 0) == {ADA: 1}


@given(
    st.dictionaries(st.sampled_from([ADA, BEA, CAT]), st.floats(0.001, 1e3)),
    st.floats(0, 5e3),
)
def test_as_much_is_missing_as_was_served(owed: dict[Caller, float], served: float) -> None:
    left = drained(owed, served)
    lost = sum(owed.values()) - sum(left.values())
    assert lost == pytest.approx(min(served, sum(owed.values())), abs=1e-6)
    assert all(left[caller] <= owed[caller] for caller in left)


def test_parts_add_up_by_caller() -> None:
    assert total({ADA: 1, BEA: 2}, {}, {ADA: 3}) == {ADA: 4, BEA: 2}


def test_of_many_callers_those_with_the_least_are_one_of_their_weights() -> None:
    amounts = {Caller(f"caller {number}", 2.0): 1.0 + number for number in range(5)}
    assert folded(amounts, 5) == amounts
    once = folded(amounts, 3)
    assert list(once.values()) == [5.0, 4.0, 3.0, 3.0]
    rest = list(once)[-1]
    assert rest.weight == 4.0
    again = folded({**once, ADA: 0.5}, 3)
    assert list(again.values()) == [5.0, 4.0, 3.0, 3.5]
    assert list(again)[-1] == Caller(rest.name, 5.0)


def test_as_much_is_served_before_a_newcomer_whether_the_others_are_one_or_many() -> None:
    amounts = {Caller(f"caller {number}"): 10.0 for number in range(9)}
    expected = served_before(amounts, ADA, 0.0, 4.0)
    assert served_before(folded(amounts, 2), ADA, 0.0, 4.0) == expected == 36.0
