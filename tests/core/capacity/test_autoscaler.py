"""The number of replicas by owed work: enough, not too many, and steady."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.capacity.autoscaler import (
    ArrivalRate,
    Autoscaler,
    ScalingTargets,
    StageLoad,
    StageTarget,
    allocate_gpus,
    desired_replicas,
)
from serve_app.core.diffusion.spec import Stage

TARGETS = ScalingTargets(target_drain_s=10, target_utilization=0.8, downscale_delay_s=60)
IDLE = StageLoad(replicas=2, min_replicas=1, max_replicas=8, images=0, owed=0, arrived_total=0)


@pytest.mark.parametrize(
    ("owed", "arriving", "wanted"),
    [(0, 0, 1), (30, 0, 3), (31, 0, 4), (0, 2.4, 3), (30, 2.5, 4), (1000, 0, 8)],
)
def test_there_are_as_many_replicas_as_owed_and_arriving_work_need(
    owed: float, arriving: float, wanted: int
) -> None:
    assert desired_replicas(replace(IDLE, owed=owed), arriving, TARGETS) == wanted


def test_a_stage_may_scale_to_zero() -> None:
    assert desired_replicas(replace(IDLE, min_replicas=0), 0, TARGETS) == 0
    assert desired_replicas(replace(IDLE, min_replicas=0, owed=0.1), 0, TARGETS) == 1


def test_no_replica_waits_for_upstream_work_which_counts_as_arriving() -> None:
    with_upstream = replace(IDLE, owed=70, upstream=40)
    assert desired_replicas(with_upstream, 0, TARGETS) == 3
    assert desired_replicas(with_upstream, 4, TARGETS) == 5


WANTED = st.fixed_dictionaries({stage: st.integers(1, 50) for stage in Stage})


@given(WANTED, st.integers(2, 60))
def test_few_gpus_are_shared_by_what_each_stage_desires(
    wanted: dict[Stage, int], gpus: int
) -> None:
    shares = allocate_gpus(wanted, dict.fromkeys(Stage, 1), gpus)
    assert sum(shares.values()) == min(gpus, sum(wanted.values()))
    assert all(1 <= shares[stage] <= wanted[stage] for stage in Stage)
    if sum(wanted.values()) > gpus:
        for stage in Stage:
            fair = gpus * wanted[stage] / sum(wanted.values())
            assert shares[stage] > fair - 2


def test_a_stage_gives_gpus_to_the_other_when_work_moves() -> None:
    base, refiner = Stage.BASE, Stage.REFINER
    one_each = dict.fromkeys(Stage, 1)
    assert allocate_gpus({base: 6, refiner: 2}, one_each, 4) == {base: 3, refiner: 1}
    assert allocate_gpus({base: 2, refiner: 6}, one_each, 4) == {base: 1, refiner: 3}


def test_a_target_rises_at_once_and_falls_after_the_downscale_delay() -> None:
    target = StageTarget(2)
    history = []
    for now, wanted in [(0, 5), (10, 3), (40, 4), (69, 1), (70, 1), (71, 1), (131, 1), (132, 1)]:
        target = target.update(wanted, now, TARGETS)
        history.append(target.replicas)
    assert history == [5, 5, 5, 5, 4, 4, 1, 1]


def test_a_gap_shorter_than_the_downscale_delay_changes_nothing() -> None:
    target = StageTarget(4)
    for now in range(0, 600, 10):
        target = target.update(4 if now % 50 == 0 else 1, now, TARGETS)
    assert target.replicas == 4


def test_the_arrival_rate_is_that_of_recent_work() -> None:
    rate = ArrivalRate().observe(99, 0.0)
    assert rate.per_second == 0
    for now in range(1, 200):
        rate = rate.observe(3, float(now))
    assert rate.per_second == pytest.approx(3, rel=0.01)
    assert rate.observe(5, 199.0) == rate
    assert rate.observe(0, 300.0).per_second == 0


def load(**fields: Any) -> StageLoad:
    return replace(StageLoad(1, 1, 8, 0, 0.0, 0.0), **fields)


def test_an_autoscaler_follows_owed_and_arriving_work() -> None:
    autoscaler = Autoscaler().observe({Stage.BASE: load(owed=50)}, 0.0, TARGETS)
    assert autoscaler.targets == {Stage.BASE: 5}
    for now in range(1, 200):
        autoscaler = autoscaler.observe(
            {Stage.BASE: load(arrived_total=2.3 * now)}, float(now), TARGETS
        )
    assert autoscaler.targets == {Stage.BASE: 3}


def test_a_stage_with_images_has_a_replica_whatever_their_cost() -> None:
    empty = load(replicas=0, min_replicas=0)
    autoscaler = Autoscaler().observe({Stage.REFINER: empty}, 0.0, TARGETS)
    assert autoscaler.targets == {Stage.REFINER: 0}
    autoscaler = autoscaler.observe({Stage.REFINER: replace(empty, images=3)}, 1.0, TARGETS)
    assert autoscaler.targets == {Stage.REFINER: 1}
    none = replace(empty, images=3, max_replicas=0)
    assert Autoscaler().observe({Stage.REFINER: none}, 0.0, TARGETS).targets == {Stage.REFINER: 0}


def test_an_autoscaler_moves_few_gpus_with_the_work() -> None:
    loads = {Stage.BASE: load(owed=60), Stage.REFINER: load(owed=20)}
    autoscaler = Autoscaler().observe(loads, 0.0, TARGETS, max_total_replicas=4)
    assert autoscaler.targets == {Stage.BASE: 3, Stage.REFINER: 1}
    loads = {Stage.BASE: load(owed=20), Stage.REFINER: load(owed=60)}
    for now in range(1, 200):
        autoscaler = autoscaler.observe(loads, float(now), TARGETS, max_total_replicas=4)
        assert sum(autoscaler.targets.values()) == 4
    assert autoscaler.targets == {Stage.BASE: 1, Stage.REFINER: 3}


def test_a_moment_of_demand_takes_no_gpu_from_another_stage() -> None:
    steady = {Stage.BASE: load(replicas=3, owed=30), Stage.REFINER: load(owed=10)}
    wants = {**steady, Stage.REFINER: load(owed=30)}
    autoscaler = Autoscaler()
    for now in range(100):
        autoscaler = autoscaler.observe(
            wants if now % 40 == 39 else steady, float(now), TARGETS, max_total_replicas=4
        )
        assert autoscaler.targets == {Stage.BASE: 3, Stage.REFINER: 1}
    for now in range(100, 170):
        autoscaler = autoscaler.observe(wants, float(now), TARGETS, max_total_replicas=4)
    assert autoscaler.targets == {Stage.BASE: 2, Stage.REFINER: 2}


def test_a_free_gpu_is_given_at_once_and_a_replica_too_many_removed_at_once() -> None:
    few = {Stage.BASE: load(replicas=1, owed=90), Stage.REFINER: load(owed=30)}
    assert Autoscaler().observe(few, 0.0, TARGETS, max_total_replicas=4).targets == {
        Stage.BASE: 3,
        Stage.REFINER: 1,
    }
    many = {Stage.BASE: load(replicas=5, owed=30), Stage.REFINER: load(owed=60)}
    assert Autoscaler().observe(many, 0.0, TARGETS, max_total_replicas=4).targets == {
        Stage.BASE: 2,
        Stage.REFINER: 2,
    }


def test_a_stage_scales_to_zero_soon_after_its_last_image() -> None:
    to_zero, autoscaler = load(replicas=1, min_replicas=0), Autoscaler()
    for now in range(60):
        busy = replace(to_zero, images=2, owed=1.0, arrived_total=0.8 * now)
        autoscaler = autoscaler.observe({Stage.REFINER: busy}, float(now), TARGETS)
    assert autoscaler.targets == {Stage.REFINER: 1}
    seconds = 0
    while autoscaler.targets[Stage.REFINER]:
        seconds += 1
        autoscaler = autoscaler.observe(
            {Stage.REFINER: replace(to_zero, arrived_total=48.0)}, 60.0 + seconds, TARGETS
        )
    assert seconds < 90 + TARGETS.downscale_delay_s


def test_an_autoscaler_that_begins_under_steady_load_keeps_the_replicas() -> None:
    autoscaler = Autoscaler()
    for now in range(120):
        replicas = autoscaler.targets.get(Stage.BASE, 10)
        observed = load(
            replicas=replicas, max_replicas=20, images=20, owed=20, arrived_total=1e6 + 8.5 * now
        )
        autoscaler = autoscaler.observe({Stage.BASE: observed}, float(now), ScalingTargets())
        assert autoscaler.targets == {Stage.BASE: 10}


@pytest.mark.parametrize(
    "targets",
    [
        *({"target_drain_s": value} for value in (0, "10", float("nan"), float("inf"))),
        *({"target_utilization": value} for value in (1.01, 0)),
        *({"downscale_delay_s": value} for value in (-1, True)),
    ],
)
def test_targets_out_of_range_are_rejected(targets: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        ScalingTargets(**targets)


def test_a_total_that_starts_again_is_no_arriving_work() -> None:
    autoscaler = Autoscaler().observe({Stage.BASE: load(arrived_total=1e6)}, 0.0, TARGETS)
    autoscaler = autoscaler.observe({Stage.BASE: load(arrived_total=5.0)}, 10.0, TARGETS)
    assert autoscaler.arrival_rates[Stage.BASE].per_second == 0
