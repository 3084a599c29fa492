"""How long the core's decisions take, as `aura simulate` prints it."""

import pytest

from serve_app.simulator.planning_time import (
    DecisionTime,
    measure_admitting,
    measure_dispatching,
    measure_planning,
)


def test_the_mean_and_the_ninety_ninth_percentile_are_printed() -> None:
    seconds = [0.001] * 98 + [0.002, 0.003]
    assert str(DecisionTime.of(seconds)) == "1030 µs on average, p99 3000 µs"


def test_every_decision_is_measured() -> None:
    for measured in (
        measure_planning(plans=5),
        measure_dispatching(images=3),
        measure_admitting(jobs=3),
    ):
        assert 0 < measured.mean <= measured.p99


@pytest.mark.long
def test_a_step_is_planned_within_a_millisecond() -> None:
    assert measure_planning().mean <= 0.001


@pytest.mark.long
def test_a_job_is_admitted_within_a_millisecond() -> None:
    assert measure_admitting().mean <= 0.001


@pytest.mark.long
def test_an_image_is_sent_to_one_of_many_replicas_within_a_millisecond() -> None:
    """The best of three, since other programs share the processor's caches."""
    assert min(measure_dispatching().mean for _ in range(3)) <= 0.001
