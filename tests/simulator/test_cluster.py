"""The cluster against what can be worked out by hand, and the policies against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from serve_app.core.capacity.autoscaler import ScalingTargets
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import BatchSize
from serve_app.simulator.cluster import Cluster, SimulationResult, StageObservation
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import (
    route_by_owed_work,
    route_by_requests,
    scale_by_owed_work,
)
from serve_app.simulator.replica import SimReplica
from serve_app.simulator.summary import percentile, summarize
from serve_app.simulator.traces import WORKLOADS, Arrival, draw_trace

SIZE = BatchSize(4, 8)
SIZES = [(1024, 1024), (1344, 768)]
STEPS = {(stage, *size, 8): 0.1 for stage in Stage for size in SIZES}  # seconds
COSTS = GpuSpeed(steps=STEPS, turn=0.0, prompt=0.0, vae_tflops=1e9)
BASE = {Stage.BASE: 1}


def ran(*arrivals: Arrival, start: Mapping[Stage, int] = BASE, **more: Any) -> SimulationResult:
    chosen: dict[str, Any] = {"route": route_by_owed_work(), "scale": None} | more
    return Cluster(SIZE, COSTS, start=start, **chosen).run(arrivals)


def seconds(run: SimulationResult) -> list[float]:
    return [round(one.seconds, 6) for one in sorted(run.finished, key=lambda d: d.arrival.at)]


def test_an_image_alone_takes_its_steps() -> None:
    run = ran(Arrival(1.0, steps=20))
    assert seconds(run) == [2.0]
    assert run.finished[0].isolated_seconds == pytest.approx(2.0)
    assert run.gpu_seconds == pytest.approx(3.0)
    assert run.occupancy == 0.25


def test_four_of_a_shape_step_together_and_a_newcomer_waits_one_step() -> None:
    run = ran(*[Arrival(0.0, steps=20)] * 4)
    assert seconds(run) == [2.0] * 4
    assert run.occupancy == 1.0
    run = ran(Arrival(0.0, steps=20), Arrival(0.05, steps=4))
    assert seconds(run) == [2.0, 0.45]


def test_two_shapes_take_turns_and_the_shorter_goes_first() -> None:
    run = ran(Arrival(0.0, steps=10), Arrival(0.0, steps=4, width=1344, height=768))
    assert sorted(seconds(run)) == [0.4, 1.4]


def test_base_hands_over_to_the_refiner() -> None:
    run = ran(Arrival(0.0, steps=20, handoff=0.8), start={Stage.BASE: 1, Stage.REFINER: 1})
    assert seconds(run) == [2.0]
    assert run.finished[0].isolated_seconds == pytest.approx(2.0)


def test_a_stage_sees_what_is_coming_from_the_other() -> None:
    seen_at: list[tuple[int, int, float, float, float]] = []

    def watch(now: float, seen: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        one = seen[Stage.REFINER]
        look = one.look
        seen_at.append((look.images, one.requests, look.owed, look.upstream, look.arrived_total))
        return {Stage.BASE: 1, Stage.REFINER: 1}

    both = {Stage.BASE: 1, Stage.REFINER: 1}
    ran(Arrival(0.55, 40, handoff=0.5), Arrival(5.0, 10), start=both, scale=watch)
    half = pytest.approx(0.5)  # twenty steps, of batches of four
    assert seen_at[0] == (0, 0, 0, 0, 0)
    assert seen_at[1] == seen_at[2] == (1, 0, half, half, half)
    assert seen_at[3] == (1, 1, pytest.approx(0.4), pytest.approx(0, abs=1e-6), half)
    assert seen_at[-1][:2] == (0, 0)


def test_an_image_waits_for_a_place_and_the_more_urgent_goes_first() -> None:
    crowd = [Arrival(0.0, steps=50)] * 12
    run = ran(*crowd, Arrival(0.1, steps=100), Arrival(0.2, steps=4))
    late = sorted(run.finished, key=lambda one: one.arrival.at)[-2:]
    assert late[1].seconds < late[0].seconds


def test_a_new_replica_takes_those_that_wait() -> None:
    def grow(now: float, looks: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        return {Stage.BASE: 4, Stage.REFINER: 0}

    crowd = [Arrival(0.0, steps=100)] * 48
    alone = ran(*crowd)
    grown = ran(*crowd, scale=grow, loading=5.0)
    assert max(seconds(alone)) == pytest.approx(120.0)
    assert max(seconds(grown)) < 45.0
    assert grown.gpu_seconds < 1.3 * alone.gpu_seconds


def test_a_replica_that_leaves_ends_what_it_has() -> None:
    def shrink(now: float, looks: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        return {Stage.BASE: 1 if now else 2, Stage.REFINER: 0}

    run = ran(
        *[Arrival(0.0, steps=100)] * 8, scale=shrink, start={Stage.BASE: 2}, observe_every=1.0
    )
    assert max(seconds(run)) < 10.5
    assert [one.replicas[Stage.BASE] for one in run.timeline][:4] == [2, 2, 1, 1]


def test_nobody_leaves_while_more_come() -> None:
    def grow(now: float, looks: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        return {Stage.BASE: 4 + int(now), Stage.REFINER: 0}

    run = ran(*[Arrival(0.0, steps=100)] * 8, scale=grow, start={Stage.BASE: 4}, observe_every=1.0)
    assert [one.replicas[Stage.BASE] for one in run.timeline][:5] == [4, 4, 5, 6, 7]


def test_who_is_to_start_waits_for_a_gpu_that_is_free() -> None:
    def move(now: float, seen: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        return {Stage.BASE: 1, Stage.REFINER: 1} if now else {Stage.BASE: 2, Stage.REFINER: 0}

    crowd = [*[Arrival(0.0, steps=100)] * 8, Arrival(5.0, steps=100)]
    run = ran(*crowd, scale=move, start={Stage.BASE: 2}, gpus=2, loading=1)
    refiners = [one.replicas[Stage.REFINER] for one in run.timeline]
    assert refiners.index(1) == 12  # a look after the one that left was done with what it had


def test_the_newest_leaves_whatever_it_has_to_do() -> None:
    def shrink(now: float, seen: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        return {Stage.BASE: 2 if now < 2 else 1, Stage.REFINER: 0}

    def last(pool: Sequence[SimReplica], *_: object) -> SimReplica:
        return pool[-1]

    run = ran(Arrival(1.5, steps=100), route=last, scale=shrink, loading=1)
    assert run.gpu_seconds == pytest.approx(2 * 11.5)


def test_owed_work_beats_two_choices_on_a_mixed_load() -> None:
    """The issue's own measure, small: p95 of latency per step asked for."""
    trace = draw_trace(WORKLOADS["steady"], rate=4.0, seconds=120, draw=Random(3))
    start = {Stage.BASE: 10, Stage.REFINER: 2}
    outcomes = []
    for route in (route_by_owed_work(), route_by_requests(Random(3))):
        run = Cluster(SIZE, GpuSpeed(), route, None, start).run(trace)
        assert len(run.finished) == len(trace)
        outcomes.append(summarize(run, 120))
    owed, requests = outcomes
    assert owed.per_step <= 0.8 * requests.per_step
    assert owed.attained >= requests.attained


def test_scaling_follows_the_work_and_goes_back() -> None:
    trace = draw_trace(WORKLOADS["bursts"], rate=3.0, seconds=480, draw=Random(3))
    least = dict.fromkeys(Stage, 1)
    scale = scale_by_owed_work(16, ScalingTargets(target_drain_s=5, target_utilization=0.7))
    cluster = Cluster(SIZE, GpuSpeed(), route_by_owed_work(), scale, least, least, 16, loading=10)
    run = cluster.run(trace)
    replicas = [sum(one.replicas.values()) for one in run.timeline]
    assert len(run.finished) == len(trace)
    assert max(replicas) >= 8 and min(replicas[60:]) <= 5
    assert max(replicas) <= 16


def test_equal_seeds_make_equal_runs() -> None:
    def once() -> SimulationResult:
        trace = draw_trace(WORKLOADS["day"], rate=2.0, seconds=60, draw=Random(9))
        start = {Stage.BASE: 3, Stage.REFINER: 1}
        return Cluster(SIZE, GpuSpeed(), route_by_requests(Random(1)), None, start).run(trace)

    assert once() == once()


def test_percentiles_are_of_what_there_is() -> None:
    assert percentile([], 0.5) == 0
    assert [percentile([1, 2, 3, 4], share) for share in (0.0, 0.5, 0.99)] == [1, 3, 4]
    assert replace(summarize(ran(Arrival(0.0, steps=4)), 1.0)).attained == 1.0
