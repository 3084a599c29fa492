"""The load of the bench of routing, and the stages that sleep through it."""

from statistics import median

import pytest

from serve_app.bench.routing_vs_serve import RunResult, _alone, _measured, _trace
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import WorkKind
from serve_app.core.service.events import ReplicaStats, SegmentDone
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.traces import Arrival
from serve_app.testing.sleeping_stage import NATIVE_SIZE, SleepingStage, stage_config

STEP, LANES = 0.02, 8  # seconds


def test_a_trace_is_as_much_work_as_four_replicas_do_in_85_percent_of_its_time() -> None:
    for seed in range(3):
        trace = _trace(200.0, seed)
        assert sum(map(_alone, trace)) == pytest.approx(0.85 * 4 * 200, rel=0.05)
        assert {one.steps for one in trace} == {4, 20, 50, 150}
        assert {(one.width, one.height) for one in trace} == {(1024, 1024), (768, 768)}


def test_what_was_played_is_told_by_image_and_by_step() -> None:
    timed = [(Arrival(0.0, steps=10), 5.0), (Arrival(0.0, steps=100), 10.0)]
    played = RunResult.of(timed, failed=1)
    assert (played.latencies, played.per_step, played.failed) == ((5.0, 10.0), (0.1, 0.5), 1)


def test_what_a_step_took_is_the_median_of_the_replicas_at_the_size_that_was_pretended() -> None:
    turn = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "base"), NATIVE_SIZE, NATIVE_SIZE, LANES)
    facts = [
        ReplicaStats(0, "", "", 0, 0, 0, 0, 0.0, 0.0, 0.0, CostTable({turn: seconds}), {})
        for seconds in (0.1, 0.2, 0.6)
    ]
    assert _measured(facts) == {(Stage.BASE, 1024, 1024, LANES): 0.2}


async def test_a_sleeping_replica_takes_the_stated_time_for_whatever_steps_together() -> None:
    steps = {(Stage.BASE, 1024, 1024, LANES): STEP}
    replica = SleepingStage(
        stage_config(Stage.BASE, images=4), GpuSpeed(step_seconds=steps, prompt_seconds=0.001)
    )
    for number in range(3):
        spec = ImageSpec(
            prompt="a", seed=number, width=NATIVE_SIZE, height=NATIVE_SIZE, steps=20, guidance=6.9
        )
        noise = NoiseConfig.from_scheduler_config({})
        schedule = make_schedule(noise, spec.sampler, 20, None, 1.0)
        sample: Sample[object] = new_sample(str(number), spec, schedule, Stage.BASE)
        leg = StageSegment(Stage.BASE, 20, last=True)
        *_, end = [event async for event in replica.advance(sample, leg)]
        assert isinstance(end, SegmentDone)
        assert end.png is not None
        assert end.gpu_time.measured > 20 * STEP
    taken = [
        seconds for turn, seconds in end.costs.seconds_by_turn.items() if turn.work is WorkKind.STEP
    ]
    assert STEP <= median(taken) < 2 * STEP
    replica.close()
