"""Serve's own scaling, against what its source does with a made-up count of requests."""

from dataclasses import replace

import pytest

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.observation import StageObservation
from serve_app.simulator.serve_autoscaling import RequestAutoscaling, scale_by_requests

AT_ONCE = RequestAutoscaling(
    upscale_delay_s=0, downscale_delay_s=0, look_back_s=10, report_interval_s=1
)


def targets(settings: RequestAutoscaling, requests: list[int], max_replicas: int = 16) -> list[int]:
    """Return the number of replicas in each second, from the ongoing requests in each second."""
    scale = scale_by_requests({Stage.BASE: max_replicas}, settings)
    replicas, history = 1, []
    for now, count in enumerate(requests):
        load = StageLoad(
            replicas, min_replicas=1, max_replicas=99, images=count, owed=0, arrived_total=0
        )
        replicas = scale(float(now), {Stage.BASE: StageObservation(load, count)})[Stage.BASE]
        history.append(replicas)
    return history


def test_there_is_a_replica_for_each_target_of_ongoing_requests() -> None:
    assert targets(AT_ONCE, [8] * 30)[-1] == 4
    assert targets(replace(AT_ONCE, target_ongoing_requests=3), [8] * 30)[-1] == 3
    assert targets(AT_ONCE, [0] * 30)[-1] == 1
    assert targets(AT_ONCE, [80] * 30)[-1] == 16
    assert targets(AT_ONCE, [80] * 30, max_replicas=5)[-1] == 5


def test_requests_count_by_their_mean_over_the_look_back_period() -> None:
    waves = ([0] * 10 + [20] * 10) * 6
    replicas = targets(replace(AT_ONCE, look_back_s=20), waves)[60:]
    assert set(replicas) <= {3, 4, 5, 6, 7}
    replicas = targets(replace(AT_ONCE, look_back_s=5), waves)[60:]
    assert {1, 10} <= set(replicas)


def test_counts_have_no_effect_before_they_are_reported() -> None:
    replicas = targets(replace(AT_ONCE, report_interval_s=10), [8] * 15)
    assert replicas == [1] * 10 + [4] * 5


def test_requests_between_two_counts_have_no_effect() -> None:
    replicas = targets(
        replace(AT_ONCE, look_back_s=50, report_interval_s=10), [0] * 3 + [100] * 3 + [0] * 20
    )
    assert set(replicas) == {1}


def test_a_single_count_is_the_mean() -> None:
    replicas = targets(replace(AT_ONCE, look_back_s=0.5), [2, 4, 6, 8])
    assert replicas == [1, 2, 3, 4]


@pytest.mark.parametrize("delay", [5, 20])
def test_more_and_fewer_must_be_wanted_for_their_delays(delay: int) -> None:
    up = targets(replace(AT_ONCE, upscale_delay_s=delay), [8] * 60)
    assert up.index(4) == 1 + delay
    down = targets(replace(AT_ONCE, downscale_delay_s=delay), [8] * 20 + [2] * 60)
    shrunk_at = len(down) - down[::-1].index(4)
    assert 20 + delay < shrunk_at <= 33 + delay


def test_a_demand_that_passes_before_its_delay_changes_nothing() -> None:
    settings = replace(AT_ONCE, look_back_s=1, upscale_delay_s=6, downscale_delay_s=6)
    assert set(targets(settings, ([8] * 5 + [2] * 5) * 5)) == {1}
    settings = replace(settings, look_back_s=0.5)
    assert set(targets(settings, [8] * 10 + ([10] * 4 + [6] * 4) * 5)[10:]) == {4}
