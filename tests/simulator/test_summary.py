"""The numbers of a run, from images whose latencies are known."""

import pytest

from serve_app.simulator.result import FinishedImage, SimulationResult
from serve_app.simulator.summary import GRACE, SLO, percentile, summarize
from serve_app.simulator.traces import Arrival


def result(*images: FinishedImage) -> SimulationResult:
    return SimulationResult(images, (), gpu_seconds=7200.0, occupancy=0.5, finished_at=100.0)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([], 0.5) == 0
    assert [percentile([1, 2, 3, 4], share) for share in (0.0, 0.5, 0.99)] == [1, 3, 4]


def test_an_image_is_in_time_within_a_multiple_of_its_isolated_latency() -> None:
    limit = SLO * 2.0 + GRACE
    summary = summarize(
        result(
            FinishedImage(Arrival(0.0, steps=10), limit, isolated_seconds=2.0),
            FinishedImage(Arrival(0.0, steps=10), limit + 0.01, isolated_seconds=2.0),
        ),
        seconds=4.0,
    )
    assert (summary.images, summary.attained) == (2, 0.5)
    assert (summary.goodput, summary.ideal) == (0.25, 0.5)


def test_latencies_per_step_are_relative_to_the_requested_steps() -> None:
    summary = summarize(
        result(
            FinishedImage(Arrival(0.0, steps=100), 10.0, isolated_seconds=9.0),
            FinishedImage(Arrival(0.0, steps=4), 2.0, isolated_seconds=0.4),
        ),
        seconds=1.0,
    )
    assert summary.per_step == 0.5
    assert (summary.p50, summary.p95) == (10.0, 10.0)


def test_gpu_seconds_become_hours() -> None:
    summary = summarize(result(), seconds=1.0)
    assert summary.gpu_hours == pytest.approx(2.0)
    assert (summary.images, summary.attained, summary.occupancy) == (0, 0.0, 0.5)
