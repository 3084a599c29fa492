"""How many replicas, by owed work: enough, no more, and not to and fro."""

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

AIMS = ScalingTargets(target_drain_s=10, target_utilization=0.8, downscale_delay_s=60)
IDLE = StageLoad(replicas=2, min_replicas=1, max_replicas=8, images=0, owed=0, arrived_total=0)


@pytest.mark.parametrize(
    ("owed", "arriving", "wanted"),
    [(0, 0, 1), (30, 0, 3), (31, 0, 4), (0, 2.4, 3), (30, 2.5, 4), (1000, 0, 8)],
)
def test_as_many_as_owed_and_arriving_work_need(owed: float, arriving: float, wanted: int) -> None:
    assert desired_replicas(replace(IDLE, owed=owed), arriving, AIMS) == wanted


def test_a_stage_may_go_to_none() -> None:
    assert desired_replicas(replace(IDLE, min_replicas=0), 0, AIMS) == 0
    assert desired_replicas(replace(IDLE, min_replicas=0, owed=0.1), 0, AIMS) == 1


def test_no_replica_waits_for_what_another_stage_has_yet_but_it_counts_as_arriving() -> None:
    seen = replace(IDLE, owed=70, upstream=40)
    assert desired_replicas(seen, 0, AIMS) == 3
    assert desired_replicas(seen, 4, AIMS) == 5


WANTED = st.fixed_dictionaries({stage: st.integers(1, 50) for stage in Stage})


@given(WANTED, st.integers(2, 60))
def test_few_gpus_are_shared_by_what_each_stage_wants(wanted: dict[Stage, int], gpus: int) -> None:
    shares = allocate_gpus(wanted, dict.fromkeys(Stage, 1), gpus)
    assert sum(shares.values()) == min(gpus, sum(wanted.values()))
    assert all(1 <= shares[stage] <= wanted[stage] for stage in Stage)
    if sum(wanted.values()) > gpus:
        for stage in Stage:
            fair = gpus * wanted[stage] / sum(wanted.values())
            assert shares[stage] > fair - 2


def test_a_stage_gives_gpus_to_the_other_when_work_moves() -> None:
    base, refiner = Stage.BASE, Stage.REFINER
    least = dict.fromkeys(Stage, 1)
    assert allocate_gpus({base: 6, refiner: 2}, least, 4) == {base: 3, refiner: 1}
    assert allocate_gpus({base: 2, refiner: 6}, least, 4) == {base: 1, refiner: 3}


def test_up_at_once_and_down_when_fewer_were_enough_for_a_while() -> None:
    course = StageTarget(2)
    seen = []
    for now, wanted in [(0, 5), (10, 3), (40, 4), (69, 1), (70, 1), (71, 1), (131, 1), (132, 1)]:
        course = course.update(wanted, now, AIMS)
        seen.append(course.replicas)
    assert seen == [5, 5, 5, 5, 4, 4, 1, 1]


def test_a_gap_shorter_than_the_patience_changes_nothing() -> None:
    course = StageTarget(4)
    for now in range(0, 600, 10):
        course = course.update(4 if now % 50 == 0 else 1, now, AIMS)
    assert course.replicas == 4


def test_flow_is_what_came_lately() -> None:
    flow = ArrivalRate().observe(99, 0.0)
    assert flow.per_second == 0
    for now in range(1, 200):
        flow = flow.observe(3, float(now))
    assert flow.per_second == pytest.approx(3, rel=0.01)
    assert flow.observe(5, 199.0) == flow
    assert flow.observe(0, 300.0).per_second == 0


def look(**seen: Any) -> StageLoad:
    return replace(StageLoad(1, 1, 8, 0, 0.0, 0.0), **seen)


def test_a_helm_follows_what_is_owed_and_what_arrives() -> None:
    helm = Autoscaler().observe({Stage.BASE: look(owed=50)}, 0.0, AIMS)
    assert helm.targets == {Stage.BASE: 5}
    for now in range(1, 200):
        helm = helm.observe({Stage.BASE: look(arrived_total=2.3 * now)}, float(now), AIMS)
    assert helm.targets == {Stage.BASE: 3}


def test_an_image_is_never_without_a_replica_whatever_is_known_of_it() -> None:
    empty = look(replicas=0, min_replicas=0)
    helm = Autoscaler().observe({Stage.REFINER: empty}, 0.0, AIMS)
    assert helm.targets == {Stage.REFINER: 0}
    helm = helm.observe({Stage.REFINER: replace(empty, images=3)}, 1.0, AIMS)
    assert helm.targets == {Stage.REFINER: 1}
    none = replace(empty, images=3, max_replicas=0)
    assert Autoscaler().observe({Stage.REFINER: none}, 0.0, AIMS).targets == {Stage.REFINER: 0}


def test_a_helm_shares_few_gpus_out_and_moves_them_with_the_work() -> None:
    seen = {Stage.BASE: look(owed=60), Stage.REFINER: look(owed=20)}
    helm = Autoscaler().observe(seen, 0.0, AIMS, max_total_replicas=4)
    assert helm.targets == {Stage.BASE: 3, Stage.REFINER: 1}
    seen = {Stage.BASE: look(owed=20), Stage.REFINER: look(owed=60)}
    for now in range(1, 200):
        helm = helm.observe(seen, float(now), AIMS, max_total_replicas=4)
        assert sum(helm.targets.values()) == 4
    assert helm.targets == {Stage.BASE: 1, Stage.REFINER: 3}


def test_a_moment_of_want_takes_no_gpu_from_another_stage() -> None:
    steady = {Stage.BASE: look(replicas=3, owed=30), Stage.REFINER: look(owed=10)}
    wants = {**steady, Stage.REFINER: look(owed=30)}
    helm = Autoscaler()
    for now in range(100):
        helm = helm.observe(
            wants if now % 40 == 39 else steady, float(now), AIMS, max_total_replicas=4
        )
        assert helm.targets == {Stage.BASE: 3, Stage.REFINER: 1}
    for now in range(100, 170):
        helm = helm.observe(wants, float(now), AIMS, max_total_replicas=4)
    assert helm.targets == {Stage.BASE: 2, Stage.REFINER: 2}


def test_a_gpu_that_nobody_has_is_given_at_once_and_one_too_many_taken() -> None:
    few = {Stage.BASE: look(replicas=1, owed=90), Stage.REFINER: look(owed=30)}
    assert Autoscaler().observe(few, 0.0, AIMS, max_total_replicas=4).targets == {
        Stage.BASE: 3,
        Stage.REFINER: 1,
    }
    many = {Stage.BASE: look(replicas=5, owed=30), Stage.REFINER: look(owed=60)}
    assert Autoscaler().observe(many, 0.0, AIMS, max_total_replicas=4).targets == {
        Stage.BASE: 2,
        Stage.REFINER: 2,
    }


def test_a_stage_goes_to_none_soon_after_its_last_image() -> None:
    resting, helm = look(replicas=1, min_replicas=0), Autoscaler()
    for now in range(60):
        busy = replace(resting, images=2, owed=1.0, arrived_total=0.8 * now)
        helm = helm.observe({Stage.REFINER: busy}, float(now), AIMS)
    assert helm.targets == {Stage.REFINER: 1}
    gone = 0
    while helm.targets[Stage.REFINER]:
        gone += 1
        helm = helm.observe(
            {Stage.REFINER: replace(resting, arrived_total=48.0)}, 60.0 + gone, AIMS
        )
    assert gone < 90 + AIMS.downscale_delay_s


def test_a_helm_that_begins_under_steady_load_keeps_what_there_is() -> None:
    helm = Autoscaler()
    for now in range(120):
        there = helm.targets.get(Stage.BASE, 10)
        seen = look(
            replicas=there, max_replicas=20, images=20, owed=20, arrived_total=1e6 + 8.5 * now
        )
        helm = helm.observe({Stage.BASE: seen}, float(now), ScalingTargets())
        assert helm.targets == {Stage.BASE: 10}


@pytest.mark.parametrize(
    "aims",
    [
        *({"target_drain_s": wait} for wait in (0, "10", float("nan"), float("inf"))),
        *({"target_utilization": busy} for busy in (1.01, 0)),
        *({"downscale_delay_s": patience} for patience in (-1, True)),
    ],
)
def test_aims_that_could_not_be_followed_are_refused(aims: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        ScalingTargets(**aims)


def test_a_restarted_count_of_what_arrived_is_no_flow() -> None:
    helm = Autoscaler().observe({Stage.BASE: look(arrived_total=1e6)}, 0.0, AIMS)
    helm = helm.observe({Stage.BASE: look(arrived_total=5.0)}, 10.0, AIMS)
    assert helm.arrival_rates[Stage.BASE].per_second == 0
