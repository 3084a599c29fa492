"""What is recorded of an engine's steps, on a clock that the test sets."""

import threading

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.metrics import (
    GPU_TIME,
    GPU_WASTED,
    IMAGES_CANCELLED,
    IMAGES_RUNNING,
    IMAGES_WAITING,
    OWED_SECONDS,
    QUEUE_TIME,
    STEP_DURATION,
    STEP_LANES,
    STEP_ROWS,
    InMemoryMeter,
)
from serve_app.deployments.engine_metrics import EngineMetrics
from serve_app.runtime.engine_events import StepRecord
from tests.support.builders import replica_stats

BASE, REFINER = Stage.BASE, Stage.REFINER


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter() -> InMemoryMeter:
    return InMemoryMeter()


@pytest.fixture
def metrics(meter: InMemoryMeter, clock: Clock) -> EngineMetrics:
    return EngineMetrics(meter, clock)


def stats(*, cancelled: int = 0, owed: float = 0.0, **positions: int) -> ReplicaStats:
    """Return the stats of a replica that wasted 3 of 10 s of GPU time on each cancelled image."""
    return replica_stats(
        cancelled=cancelled,
        gpu_seconds=10.0 * cancelled,
        wasted_gpu_seconds=3.0 * cancelled,
        owed_seconds=owed,
        positions=positions,
    )


def step(began: float, *ids: str, stage: Stage = BASE) -> StepRecord:
    return StepRecord(stage, ids, rows=2 * len(ids), lanes=8, began=began, seconds=0.5)


def test_steps_rows_and_lanes_are_recorded_once_by_stage(
    metrics: EngineMetrics, meter: InMemoryMeter
) -> None:
    metrics.on_step(step(100, "a", "b", "c"))
    metrics.on_step(step(101, "a"))
    metrics.on_step(step(102, "d", stage=REFINER))
    for _ in range(2):
        metrics.flush(stats())
        assert meter.times(STEP_DURATION, stage=BASE) == 2
        assert meter.value(STEP_DURATION, stage=BASE) == 1.0
        assert meter.value(STEP_ROWS, stage=BASE) == 8
        assert meter.value(STEP_LANES, stage=BASE) == 16
        assert meter.value(STEP_ROWS, stage=REFINER) == 2


def test_totals_grow_by_the_difference_and_owed_work_is_a_gauge(
    metrics: EngineMetrics, meter: InMemoryMeter
) -> None:
    for cancelled, owed in ((2, 3.5), (2, 7.0), (5, 0.0)):
        metrics.flush(stats(cancelled=cancelled, owed=owed))
        assert meter.value(IMAGES_CANCELLED) == cancelled
        assert meter.value(GPU_TIME) == 10 * cancelled
        assert meter.value(GPU_WASTED) == 3 * cancelled
        assert meter.value(OWED_SECONDS) == owed


def test_a_sample_waits_from_its_arrival_to_its_first_step(
    metrics: EngineMetrics, meter: InMemoryMeter, clock: Clock
) -> None:
    metrics.sample_arrived("a", BASE)
    clock.now = 102
    metrics.sample_arrived("b", BASE)
    metrics.on_step(step(103, "a"))
    metrics.on_step(step(104, "a", "b"))
    metrics.on_step(step(105, "a", "b"))
    metrics.flush(stats())
    assert (meter.times(QUEUE_TIME, stage=BASE), meter.value(QUEUE_TIME, stage=BASE)) == (
        2,
        3 + 2,
    )


def test_each_segment_on_one_replica_has_a_wait_of_its_own(
    metrics: EngineMetrics, meter: InMemoryMeter, clock: Clock
) -> None:
    first = metrics.sample_arrived("a", BASE)
    metrics.on_step(step(101, "a"))
    clock.now = 103
    metrics.sample_arrived("a", REFINER)  # its steps of the first segment are not recorded yet
    metrics.sample_left(first)
    metrics.on_step(step(102.9, "a"))  # the last of them, left here late
    metrics.flush(stats())
    metrics.on_step(step(107, "a", stage=REFINER))
    metrics.flush(stats())
    assert meter.value(QUEUE_TIME, stage=BASE) == 1
    assert meter.times(QUEUE_TIME, stage=BASE) == 1
    assert meter.value(QUEUE_TIME, stage=REFINER) == 4


def test_a_sample_that_leaves_before_its_first_step_has_no_queue_time(
    metrics: EngineMetrics, meter: InMemoryMeter
) -> None:
    metrics.sample_left(metrics.sample_arrived("a", BASE))
    metrics.flush(stats())
    metrics.on_step(step(105, "a"))
    metrics.flush(stats())
    assert meter.times(QUEUE_TIME, stage=BASE) == 0


def test_steps_may_arrive_from_the_engine_s_thread_during_a_flush(
    metrics: EngineMetrics, meter: InMemoryMeter
) -> None:
    def work() -> None:
        for number in range(5000):
            metrics.on_step(step(number, "a"))

    engine = threading.Thread(target=work)
    engine.start()
    while engine.is_alive():
        metrics.flush(stats())
    engine.join()
    metrics.flush(stats())
    assert meter.times(STEP_DURATION, stage=BASE) == 5000


def test_a_flush_is_the_last_when_samples_have_left_replica_and_engine(
    metrics: EngineMetrics,
) -> None:
    assert not metrics.flush(stats())
    first, second = metrics.sample_arrived("a", BASE), metrics.sample_arrived("b", BASE)
    assert metrics.flush(stats())
    metrics.sample_left(first)
    assert metrics.flush(stats())
    metrics.sample_left(second)
    assert metrics.flush(stats(b=3))
    assert not metrics.flush(stats())


def test_images_are_waiting_before_their_first_step_and_running_after_it(
    metrics: EngineMetrics, meter: InMemoryMeter
) -> None:
    def gauges(stage: Stage) -> tuple[float, float]:
        return meter.value(IMAGES_WAITING, stage=stage), meter.value(IMAGES_RUNNING, stage=stage)

    first, second = metrics.sample_arrived("a", BASE), metrics.sample_arrived("b", BASE)
    third = metrics.sample_arrived("c", REFINER)
    metrics.flush(stats())
    assert (gauges(BASE), gauges(REFINER)) == ((2, 0), (1, 0))
    metrics.on_step(step(101, "a"))
    metrics.on_step(step(102, "a"))
    metrics.flush(stats())
    assert (gauges(BASE), gauges(REFINER)) == ((1, 1), (1, 0))
    for arrival in (first, second, third):
        metrics.sample_left(arrival)
    metrics.flush(stats())
    assert gauges(BASE) == gauges(REFINER) == (0, 0)
