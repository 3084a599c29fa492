"""How long a turn may take, by what is known of turns like it."""

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.overdue import (
    UNKNOWN_TURN,
    CurrentTurn,
    TurnLimits,
    silence_limit,
    turn_limits,
)
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import EngineFault
from serve_app.core.scheduling.work import Plan, WorkKind
from tests.support.images import image

BASE = ModelKey(Stage.BASE, "sdxl")
STEP = TurnKind(WorkKind.STEP, BASE, 1024, 1024, 8)
LARGER = TurnKind(WorkKind.STEP, BASE, 1536, 1536, 8)
LOAD = TurnKind(WorkKind.LOAD, BASE)


def test_a_quick_turn_may_take_ten_seconds_and_its_replica_twenty() -> None:
    assert turn_limits(STEP, CostTable({STEP: 0.1})) == TurnLimits(10.0, 20.0)


def test_a_slow_turn_may_take_ten_times_as_long_as_measured() -> None:
    assert turn_limits(STEP, CostTable({STEP: 4.0})) == TurnLimits(40.0, 40.0)
    assert turn_limits(STEP, CostTable({STEP: 1.5})) == TurnLimits(15.0, 20.0)


def test_a_kind_of_turn_that_was_never_measured_may_compile() -> None:
    costs = CostTable({STEP: 0.1})
    assert turn_limits(LARGER, costs) == TurnLimits(120.0, 120.0)
    assert turn_limits(LARGER, CostTable({STEP: 10.0})).overdue > 200


def test_the_first_turns_and_all_loads_may_take_ten_minutes() -> None:
    assert turn_limits(STEP, CostTable()) == UNKNOWN_TURN == TurnLimits(600.0, 600.0)
    assert turn_limits(LOAD, CostTable({LOAD: 1.0, STEP: 0.1})) == UNKNOWN_TURN
    slow = TurnKind(WorkKind.STEP, BASE, 4096, 4096, 8)
    assert turn_limits(slow, CostTable()).overdue > 600


def test_silence_means_ten_turns_or_ten_seconds() -> None:
    assert [silence_limit(seconds) for seconds in (0.0, 0.5, 3.0)] == [10.0, 10.0, 30.0]


def test_images_leave_before_their_replica_is_replaced() -> None:
    for silent, overdue in ((30.0, 20.0), (0.0, 20.0)):
        with pytest.raises(ValueError, match="leave before"):
            TurnLimits(silent, overdue)


def test_a_turn_is_silent_and_then_overdue() -> None:
    sample = image("a")
    plan = Plan(WorkKind.STEP, (sample,), 8)
    turn = CurrentTurn.of(plan, 100.0, CostTable({STEP: 0.1}))
    assert not turn.is_silent(110.0)
    assert turn.is_silent(110.1)
    turn.check(120.0)
    with pytest.raises(EngineFault, match="21 s so far"):
        turn.check(121.0)
    unknown = CurrentTurn.unknown(100.0)
    assert not unknown.is_silent(700.0)
    unknown.check(700.0)
    assert unknown.is_silent(700.1)
