"""The load of the routing benchmark, and the replicas that sleep through it."""

from typing import Any

import pytest

from serve_app.bench.routing_vs_serve import (
    RunResult,
    draw_load,
    gpu_seconds,
    median_step_seconds,
)
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import WorkKind
from serve_app.core.service.events import SegmentDone
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.traces import Arrival
from serve_app.testing.sleeping_stage import NATIVE_SIZE, SleepingStage, stage_config
from tests.support.builders import replica_stats

STEP, LANES = 0.02, 8  # seconds


def test_a_trace_is_the_work_of_four_replicas_in_85_percent_of_its_time() -> None:
    for seed in range(3):
        trace = draw_load(200.0, seed)
        assert sum(map(gpu_seconds, trace)) == pytest.approx(0.85 * 4 * 200, rel=0.05)
        assert {arrival.steps for arrival in trace} == {4, 20, 50, 150}
        sizes = {(arrival.width, arrival.height) for arrival in trace}
        assert sizes == {(1024, 1024), (768, 768)}


def test_a_result_has_latencies_per_image_and_per_step() -> None:
    timed = [(Arrival(0.0, steps=10), 5.0), (Arrival(0.0, steps=100), 10.0)]
    result = RunResult.of(timed, failed=1)
    assert (result.latencies, result.per_step, result.failed) == ((5.0, 10.0), (0.1, 0.5), 1)


def test_step_seconds_are_the_median_of_the_replicas_at_the_pretended_size() -> None:
    turn = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "base"), NATIVE_SIZE, NATIVE_SIZE, LANES)
    stats = [replica_stats(costs=CostTable({turn: seconds})) for seconds in (0.1, 0.2, 0.6)]
    assert median_step_seconds(stats) == {(Stage.BASE, 1024, 1024, LANES): 0.2}


async def test_a_sleeping_replica_takes_at_least_the_stated_time_for_every_step() -> None:
    speed = GpuSpeed(step_seconds={(Stage.BASE, 1024, 1024, LANES): STEP}, prompt_seconds=0.001)
    replica = SleepingStage(stage_config(Stage.BASE, images=4), speed)
    spec = ImageSpec(
        prompt="a", seed=1, width=NATIVE_SIZE, height=NATIVE_SIZE, steps=20, guidance=7
    )
    noise = NoiseConfig.from_scheduler_config({})
    schedule = make_schedule(noise, spec.sampler, spec.steps, None, 1.0)
    sample: Sample[Any] = new_sample("a", spec, schedule, Stage.BASE)
    segment = StageSegment(Stage.BASE, spec.steps, last=True)
    *_, end = [event async for event in replica.advance(sample, segment)]
    assert isinstance(end, SegmentDone)
    assert end.png is not None
    assert end.gpu_time.measured > spec.steps * STEP
    turns = end.costs.seconds_by_turn.items()
    steps = [seconds for turn, seconds in turns if turn.work is WorkKind.STEP]
    assert min(steps) >= STEP
    replica.close()
