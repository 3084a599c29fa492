"""The cluster against what can be worked out by hand, and the policies against each other."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest

from serve_app.core.caller import NO_CALLER
from serve_app.core.capacity.autoscaler import ScalingTargets
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.observation import StageObservation
from serve_app.simulator.policies import (
    route_by_owed_work,
    route_by_requests,
    scale_by_owed_work,
)
from serve_app.simulator.pool import ImageToRoute
from serve_app.simulator.replica import SimReplica
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.summary import summarize
from serve_app.simulator.traces import WORKLOADS, Arrival, draw_trace

SIZE = BatchSize(4, (8,))
IMAGE_SIZES = [(1024, 1024), (1344, 768)]
STEPS = {(stage, *size, 8): 0.1 for stage in Stage for size in IMAGE_SIZES}  # seconds
SPEED = GpuSpeed(step_seconds=STEPS, overhead_seconds=0.0, prompt_seconds=0.0, vae_tflops=1e9)
ONE_BASE = {Stage.BASE: 1}
Observations = Mapping[Stage, StageObservation]


def run(*arrivals: Arrival, start: Mapping[Stage, int] = ONE_BASE, **more: Any) -> SimulationResult:
    options: dict[str, Any] = {"route": route_by_owed_work(), "scale": None} | more
    return Cluster(SIZE, SPEED, start=start, **options).run(arrivals)


def seconds(result: SimulationResult) -> list[float]:
    by_arrival = sorted(result.finished, key=lambda image: image.arrival.at)
    return [round(image.seconds, 6) for image in by_arrival]


def replicas_over_time(result: SimulationResult, stage: Stage) -> list[int]:
    return [point.replicas[stage] for point in result.timeline]


def test_an_image_alone_takes_its_steps() -> None:
    result = run(Arrival(1.0, steps=20))
    assert seconds(result) == [2.0]
    assert result.finished[0].isolated_seconds == pytest.approx(2.0)
    assert result.gpu_seconds == pytest.approx(3.0)
    assert result.finished_at == pytest.approx(3.0)
    assert result.occupancy == 0.25


def test_four_images_of_a_size_step_together_and_a_newcomer_waits_one_step() -> None:
    result = run(*[Arrival(0.0, steps=20)] * 4)
    assert seconds(result) == [2.0] * 4
    assert result.occupancy == 1.0
    result = run(Arrival(0.0, steps=20), Arrival(0.05, steps=4))
    assert seconds(result) == [2.0, 0.45]


def test_two_sizes_take_turns_and_the_shorter_image_goes_first() -> None:
    result = run(Arrival(0.0, steps=10), Arrival(0.0, steps=4, width=1344, height=768))
    assert sorted(seconds(result)) == [0.4, 1.4]


def test_base_hands_over_to_the_refiner() -> None:
    both = {Stage.BASE: 1, Stage.REFINER: 1}
    result = run(Arrival(0.0, steps=20, handoff=0.8), start=both)
    assert seconds(result) == [2.0]
    assert result.finished[0].isolated_seconds == pytest.approx(2.0)


def test_a_stage_observes_the_work_that_is_still_upstream() -> None:
    observed: list[Any] = []

    def watch(now: float, observations: Observations) -> Mapping[Stage, int]:
        refiner = observations[Stage.REFINER]
        load = refiner.load
        observed.append(
            (load.images, refiner.requests, load.owed, load.upstream, load.arrived_total)
        )
        return {Stage.BASE: 1, Stage.REFINER: 1}

    both = {Stage.BASE: 1, Stage.REFINER: 1}
    run(Arrival(0.55, 40, handoff=0.5), Arrival(5.0, 10), start=both, scale=watch)
    half = pytest.approx(0.5)  # twenty steps, in batches of four
    assert observed[0] == (0, 0, 0, 0, 0)
    assert observed[1] == observed[2] == (1, 0, half, half, half)
    assert observed[3] == (1, 1, pytest.approx(0.4), pytest.approx(0, abs=1e-6), half)
    assert observed[-1][:2] == (0, 0)


def test_waiting_images_count_as_owed_work_and_as_requests() -> None:
    observed: list[Any] = []

    def watch(now: float, observations: Observations) -> Mapping[Stage, int]:
        base = observations[Stage.BASE]
        observed.append((base.requests, base.load.owed))
        return {Stage.BASE: 1, Stage.REFINER: 0}

    run(*[Arrival(0.05, steps=40)] * 20, scale=watch)
    assert observed[1] == (20, pytest.approx(20 * 40 * 0.1 / 4 - 0.9))  # nine steps were taken


def test_an_image_waits_for_a_place_and_the_more_urgent_one_goes_first() -> None:
    result = run(*[Arrival(0.0, steps=50)] * 12, Arrival(0.1, steps=100), Arrival(0.2, steps=4))
    long, draft = sorted(result.finished, key=lambda image: image.arrival.at)[-2:]
    assert draft.seconds < long.seconds


def test_a_new_replica_takes_waiting_images() -> None:
    def grow(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 4, Stage.REFINER: 0}

    arrivals = [Arrival(0.0, steps=100)] * 48
    fixed = run(*arrivals)
    grown = run(*arrivals, scale=grow, load_seconds=5.0)
    assert max(seconds(fixed)) == pytest.approx(120.0)
    assert max(seconds(grown)) < 45.0
    assert grown.gpu_seconds < 1.3 * fixed.gpu_seconds


def test_a_replica_that_leaves_finishes_its_work() -> None:
    def shrink(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 1 if now else 2, Stage.REFINER: 0}

    result = run(*[Arrival(0.0, steps=100)] * 8, scale=shrink, start={Stage.BASE: 2})
    assert max(seconds(result)) < 10.5
    assert replicas_over_time(result, Stage.BASE)[:4] == [2, 2, 1, 1]


def test_no_replica_leaves_while_more_are_wanted() -> None:
    def grow(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 4 + int(now), Stage.REFINER: 0}

    result = run(*[Arrival(0.0, steps=100)] * 8, scale=grow, start={Stage.BASE: 4})
    assert replicas_over_time(result, Stage.BASE)[:5] == [4, 4, 5, 6, 7]


def test_a_new_replica_waits_until_a_gpu_is_free() -> None:
    def move(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 1, Stage.REFINER: 1} if now else {Stage.BASE: 2, Stage.REFINER: 0}

    arrivals = [*[Arrival(0.0, steps=100)] * 8, Arrival(5.0, steps=100)]
    result = run(*arrivals, scale=move, start={Stage.BASE: 2}, gpus=2, load_seconds=1)
    refiners = replicas_over_time(result, Stage.REFINER)
    assert refiners.index(1) == 12  # one observation after the leaving replica was done


def test_the_newest_replica_leaves_whatever_it_has_to_do() -> None:
    def shrink(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 2 if now < 2 else 1, Stage.REFINER: 0}

    def route_to_newest(replicas: Sequence[SimReplica], *_: object) -> SimReplica:
        return replicas[-1]

    arrival = Arrival(1.5, steps=100)
    result = run(arrival, route=route_to_newest, scale=shrink, load_seconds=1)
    assert result.gpu_seconds == pytest.approx(2 * 11.5)


def test_a_replica_that_still_loads_leaves_first_and_never_becomes_ready() -> None:
    def shrink(now: float, observations: Observations) -> Mapping[Stage, int]:
        return {Stage.BASE: 2 if now < 2 else 1, Stage.REFINER: 0}

    result = run(Arrival(0.0, steps=100), scale=shrink, load_seconds=5)
    assert seconds(result) == [10.0]
    assert result.gpu_seconds == pytest.approx(10.0 + 2.0)


def test_owed_work_beats_two_choices_on_a_mixed_load() -> None:
    """Compare the 95th percentile of the latency per requested step."""
    trace = draw_trace(WORKLOADS["steady"], rate=4.0, seconds=120, rng=Random(3))
    start = {Stage.BASE: 10, Stage.REFINER: 2}
    summaries = []
    for route in (route_by_owed_work(), route_by_requests(Random(3))):
        result = Cluster(SIZE, GpuSpeed(), route, None, start).run(trace)
        assert len(result.finished) == len(trace)
        summaries.append(summarize(result, 120))
    owed, requests = summaries
    assert owed.per_step <= 0.8 * requests.per_step
    assert owed.attained >= requests.attained


def test_two_choices_sends_an_image_to_the_replica_with_fewer_images() -> None:
    route = route_by_requests(Random(0))
    replicas = [SimReplica(name, Stage.BASE, SIZE, SPEED) for name in "ab"]
    replicas[0].callers[NO_CALLER] = 1
    image = ImageToRoute("", steps=30, alone_seconds=3.0)
    choices = {route(replicas, image).id for _ in range(20)}
    assert choices == {"b"}
    assert route(replicas[:1], image).id == "a"


def test_scaling_follows_the_work_up_and_down() -> None:
    trace = draw_trace(WORKLOADS["bursts"], rate=3.0, seconds=480, rng=Random(3))
    one_each = dict.fromkeys(Stage, 1)
    scale = scale_by_owed_work(16, ScalingTargets(target_drain_s=5, target_utilization=0.7))
    cluster = Cluster(
        SIZE, GpuSpeed(), route_by_owed_work(), scale, one_each, one_each, 16, load_seconds=10
    )
    result = cluster.run(trace)
    replicas = [sum(point.replicas.values()) for point in result.timeline]
    assert len(result.finished) == len(trace)
    assert max(replicas) >= 8
    assert min(replicas[60:]) <= 5
    assert max(replicas) <= 16


def test_equal_seeds_make_equal_runs() -> None:
    def once() -> SimulationResult:
        trace = draw_trace(WORKLOADS["day"], rate=2.0, seconds=60, rng=Random(9))
        start = {Stage.BASE: 3, Stage.REFINER: 1}
        return Cluster(SIZE, GpuSpeed(), route_by_requests(Random(1)), None, start).run(trace)

    assert once() == once()
