"""What is told of an engine's turns, on a clock that the test turns."""

import threading

import pytest

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.metrics import (
    BUSY_SECONDS,
    CANCELS,
    OWED_SECONDS,
    QUEUE_SECONDS,
    STEP_LANES,
    STEP_ROWS,
    STEP_SECONDS,
    WASTED_SECONDS,
    InMemoryMeter,
)
from serve_app.deployments.engine_metrics import EngineMetrics
from serve_app.runtime.step_record import StepRecord

BASE, REFINER = Stage.BASE, Stage.REFINER


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally() -> InMemoryMeter:
    return InMemoryMeter()


@pytest.fixture
def log(tally: InMemoryMeter, clock: Clock) -> EngineMetrics:
    return EngineMetrics(tally, clock)


def facts(
    *, cancelled: int = 0, owed: float = 0.0, positions: dict[str, int] | None = None
) -> ReplicaStats:
    """A replica that was busy for ten seconds an image cancelled, and wasted three of them."""
    busy, wasted = 10.0 * cancelled, 3.0 * cancelled
    counts = (0, 0, 0, cancelled, busy, wasted, owed)
    return ReplicaStats(1, "p", "", *counts, CostTable(), positions or {})


def turn(began: float, *ids: str, stage: Stage = BASE) -> StepRecord:
    return StepRecord(stage, ids, rows=2 * len(ids), lanes=8, began=began, seconds=0.5)


def test_steps_rows_and_lanes_are_told_once_by_stage(
    log: EngineMetrics, tally: InMemoryMeter
) -> None:
    log.on_step(turn(100, "a", "b", "c"))
    log.on_step(turn(101, "a"))
    log.on_step(turn(102, "d", stage=REFINER))
    for _ in range(2):
        log.flush(facts())
        assert tally.times(STEP_SECONDS, stage=BASE) == 2
        assert tally.value(STEP_SECONDS, stage=BASE) == 1.0
        assert tally.value(STEP_ROWS, stage=BASE) == 8
        assert tally.value(STEP_LANES, stage=BASE) == 16
        assert tally.value(STEP_ROWS, stage=REFINER) == 2


def test_totals_grow_by_what_is_new_and_owed_work_is_what_it_is_now(
    log: EngineMetrics, tally: InMemoryMeter
) -> None:
    for cancelled, owed in ((2, 3.5), (2, 7.0), (5, 0.0)):
        log.flush(facts(cancelled=cancelled, owed=owed))
        assert tally.value(CANCELS) == cancelled
        assert tally.value(BUSY_SECONDS) == 10 * cancelled
        assert tally.value(WASTED_SECONDS) == 3 * cancelled
        assert tally.value(OWED_SECONDS) == owed


def test_a_sample_waits_from_its_coming_to_its_first_step(
    log: EngineMetrics, tally: InMemoryMeter, clock: Clock
) -> None:
    log.sample_arrived("a")
    clock.now = 102
    log.sample_arrived("b")
    log.on_step(turn(103, "a"))
    log.on_step(turn(104, "a", "b"))
    log.on_step(turn(105, "a", "b"))
    log.flush(facts())
    assert (tally.times(QUEUE_SECONDS, stage=BASE), tally.value(QUEUE_SECONDS, stage=BASE)) == (
        2,
        3 + 2,
    )


def test_each_leg_on_one_replica_has_a_wait_of_its_own(
    log: EngineMetrics, tally: InMemoryMeter, clock: Clock
) -> None:
    first = log.sample_arrived("a")
    log.on_step(turn(101, "a"))
    clock.now = 103
    log.sample_arrived("a")  # its turns on the leg before were not told yet
    log.sample_left("a", first)
    log.on_step(turn(102.9, "a"))  # the last of them, which was late
    log.flush(facts())
    log.on_step(turn(107, "a", stage=REFINER))
    log.flush(facts())
    assert tally.value(QUEUE_SECONDS, stage=BASE) == 1
    assert tally.times(QUEUE_SECONDS, stage=BASE) == 1
    assert tally.value(QUEUE_SECONDS, stage=REFINER) == 4


def test_who_leaves_before_a_first_step_has_waited_for_nothing_and_is_forgotten(
    log: EngineMetrics, tally: InMemoryMeter
) -> None:
    log.sample_left("a", log.sample_arrived("a"))
    log.flush(facts())
    log.on_step(turn(105, "a"))
    log.flush(facts())
    assert tally.times(QUEUE_SECONDS, stage=BASE) == 0


def test_turns_may_be_noted_by_the_engine_s_thread_while_others_are_told(
    log: EngineMetrics, tally: InMemoryMeter
) -> None:
    engine = threading.Thread(target=lambda: [log.on_step(turn(n, "a")) for n in range(5000)])
    engine.start()
    while engine.is_alive():
        log.flush(facts())
    engine.join()
    log.flush(facts())
    assert tally.times(STEP_SECONDS, stage=BASE) == 5000


def test_more_is_to_come_until_samples_have_left_the_replica_and_its_engine(
    log: EngineMetrics,
) -> None:
    assert not log.flush(facts())
    first, second = log.sample_arrived("a"), log.sample_arrived("b")
    assert log.flush(facts())
    log.sample_left("a", first)
    assert log.flush(facts())
    log.sample_left("b", second)
    assert log.flush(facts(positions={"b": 3}))
    assert not log.flush(facts())
