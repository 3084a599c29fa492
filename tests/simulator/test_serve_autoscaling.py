"""Serve's own scaling, against what its source says of a made-up count of requests."""

from dataclasses import replace

import pytest

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import StageObservation
from serve_app.simulator.serve_autoscaling import Autoscaling, scale_by_requests

AT_ONCE = Autoscaling(upscale_delay=0, downscale_delay=0, look_back=10, push=1)


def targets(settings: Autoscaling, requests: list[int], most: int = 16) -> list[int]:
    """Of one stage that had so many requests in each second."""
    scale, replicas, seen = scale_by_requests({Stage.BASE: most}, settings), 1, []
    for now, count in enumerate(requests):
        look = StageLoad(
            replicas, min_replicas=1, max_replicas=99, images=count, owed=0, arrived_total=0
        )
        replicas = scale(float(now), {Stage.BASE: StageObservation(look, count)})[Stage.BASE]
        seen.append(replicas)
    return seen


def test_a_replica_for_every_so_many_requests() -> None:
    assert targets(AT_ONCE, [8] * 30)[-1] == 4
    assert targets(replace(AT_ONCE, target_ongoing_requests=3), [8] * 30)[-1] == 3
    assert targets(AT_ONCE, [0] * 30)[-1] == 1
    assert targets(AT_ONCE, [80] * 30)[-1] == 16
    assert targets(AT_ONCE, [80] * 30, most=5)[-1] == 5


def test_requests_count_by_their_mean_over_the_time_looked_back_upon() -> None:
    waves = ([0] * 10 + [20] * 10) * 6
    told = targets(replace(AT_ONCE, look_back=20), waves)[60:]
    assert set(told) <= {3, 4, 5, 6, 7}
    told = targets(replace(AT_ONCE, look_back=5), waves)[60:]
    assert {1, 10} <= set(told)


def test_what_was_not_pushed_yet_is_not_known() -> None:
    told = targets(replace(AT_ONCE, push=10), [8] * 15)
    assert told == [1] * 10 + [4] * 5


def test_what_is_between_two_counts_is_not_known() -> None:
    told = targets(replace(AT_ONCE, look_back=50, push=10), [0] * 3 + [100] * 3 + [0] * 20)
    assert set(told) == {1}


def test_a_single_count_is_the_mean() -> None:
    told = targets(replace(AT_ONCE, look_back=0.5), [2, 4, 6, 8])
    assert told == [1, 2, 3, 4]


@pytest.mark.parametrize("delay", [5, 20])
def test_more_and_fewer_must_be_wanted_for_their_delays(delay: int) -> None:
    up = targets(replace(AT_ONCE, upscale_delay=delay), [8] * 60)
    assert up.index(4) == 1 + delay
    down = targets(replace(AT_ONCE, downscale_delay=delay), [8] * 20 + [2] * 60)
    gone = len(down) - down[::-1].index(4)
    assert 20 + delay < gone <= 33 + delay


def test_a_wish_that_passes_before_its_delay_changes_nothing() -> None:
    settings = replace(AT_ONCE, look_back=1, upscale_delay=6, downscale_delay=6)
    assert set(targets(settings, ([8] * 5 + [2] * 5) * 5)) == {1}
    settings = replace(settings, look_back=0.5)
    assert set(targets(settings, [8] * 10 + ([10] * 4 + [6] * 4) * 5)[10:]) == {4}
