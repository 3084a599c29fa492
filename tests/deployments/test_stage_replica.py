"""A replica without Ray: the plain class, with the demo behind it."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.capacity.replica_report import ReplicaReport, encode_batch_key, key_of
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import ProfileChanged
from serve_app.core.replica_errors import LeaseExpired, TakenOver, TurnOverdue
from serve_app.core.service.events import (
    Progress,
    Queued,
    ReplicaStats,
    SegmentDone,
    Snapshot,
    StageEvent,
)
from serve_app.core.service.metrics import (
    IMAGES_CANCELLED,
    IMAGES_ORPHANED,
    OWED_SECONDS,
    QUEUE_TIME,
    STEP_DURATION,
    STEP_LANES,
    STEP_ROWS,
    InMemoryMeter,
)
from serve_app.core.startup_error import read_startup_error
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.engine_runs import sample_of
from tests.support.keys import base_key
from tests.support.local_stage import cpu_stage
from tests.support.waiting import first_match, until_async

SPEC = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=150, guidance=5)
END = StageSegment(Stage.BASE, 150, last=True)
END_OF_TWO = StageSegment(Stage.BASE, 2, last=True)


def config(folder: Path, device: str = "cpu") -> StageConfig:
    return cpu_stage([ModelSource("demo", folder)], device=device)


def is_empty(stats: ReplicaStats) -> bool:
    return not stats.engine.positions


def holds_sample(stats: ReplicaStats) -> bool:
    return bool(stats.engine.positions)


@pytest.fixture(scope="module")
def replica() -> Iterator[StageReplica]:
    replica = StageReplica(config(demo_folder(Stage.BASE)))
    yield replica
    replica.close()


async def test_a_sample_yields_snapshots_and_at_last_an_image(
    replica: StageReplica,
) -> None:
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=40, guidance=5)
    segment = StageSegment(Stage.BASE, 40, last=True)
    events = [event async for event in replica.advance(sample_of(spec, "finished"), segment)]
    assert events[:2] == [Queued(), Progress(0)]
    assert all(isinstance(event, Progress | Snapshot) for event in events[1:-1])
    places = [event.index for event in events if isinstance(event, Progress)]
    snapshots = [event.sample.index for event in events if isinstance(event, Snapshot)]
    assert places == sorted(places)
    assert snapshots == sorted(set(snapshots))
    assert 0 < snapshots[0] <= snapshots[-1] <= 40
    end = events[-1]
    assert isinstance(end, SegmentDone)
    assert end.png is not None
    assert end.png.startswith(b"\x89PNG")
    stats = await first_match(replica.stats, is_empty)  # the last turn is counted after its event
    assert 0 < end.gpu_time.measured <= stats.engine.gpu_seconds
    assert (stats.owed_seconds, stats.engine.wasted_gpu_seconds) == (0, 0)
    assert stats.engine.costs.is_calibrated
    assert end.costs.is_calibrated


async def test_a_truncated_prompt_is_reported_with_the_image(replica: StageReplica) -> None:
    segment, prompt = StageSegment(Stage.BASE, 1, last=True), "a fox" + " BREAK and" * 31
    for requested, cut in ((prompt, False), (f"{prompt} BREAK a red star", True)):
        spec = ImageSpec(prompt=requested, seed=1, width=128, height=128, steps=1, guidance=5)
        *_, end = [event async for event in replica.advance(sample_of(spec, "long"), segment)]
        assert isinstance(end, SegmentDone)
        assert [warning.endswith('"a red star"') for warning in end.sample.warnings] == [True] * cut


async def test_a_caller_that_disconnects_frees_the_engine_within_a_step(
    replica: StageReplica,
) -> None:
    before = await first_match(replica.stats, is_empty)  # the previous test's sample has left
    task = asyncio.create_task(_all_events(replica))
    await first_match(replica.stats, holds_sample)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at_cancel = await replica.stats()
    after = await first_match(replica.stats, is_empty)
    # the step that was running, and one that ended after `at_cancel` was read
    assert after.engine.steps - at_cancel.engine.steps <= 2
    assert after.engine.cancelled == before.engine.cancelled + 1


async def _all_events(replica: StageReplica, segment: StageSegment = END) -> object:
    return [event async for event in replica.advance(sample_of(SPEC, "abandoned"), segment)]


async def test_an_image_that_is_taken_leaves_the_engine_and_goes_on_elsewhere_to_the_same_bytes(
    replica: StageReplica,
) -> None:
    spec, segment = replace(SPEC, steps=40), StageSegment(Stage.BASE, 40, last=True)
    sample = sample_of(spec, "orphan")
    *_, whole = [event async for event in replica.advance(sample, segment)]
    last: list[StageEvent] = []

    async def listen() -> None:
        async for event in replica.advance(sample, segment):
            last[:] = [event]

    task = asyncio.create_task(listen())
    await until_async(lambda: isinstance(last and last[0], Snapshot))
    kept = await replica.take("orphan", "another ingress")
    with pytest.raises(TakenOver):
        await task
    await first_match(replica.stats, is_empty)
    assert kept is not None
    assert 0 < kept.sample.index < 40
    *_, rest = [event async for event in replica.advance(kept.sample, segment)]
    assert isinstance(whole, SegmentDone)
    assert isinstance(rest, SegmentDone)
    assert rest.png == whole.png


@pytest.mark.long
async def test_an_image_whose_sender_renews_nothing_leaves_the_engine_within_ten_seconds() -> None:
    meter, denoiser = InMemoryMeter(), ConstantDenoiser()
    models = ModelCache.of(analytic_model(denoiser))
    replica = StageReplica(config(demo_folder(Stage.BASE)), lambda: meter, lambda _: models)
    denoiser.patience = 60
    denoiser.gate.clear()
    end = StageSegment(Stage.BASE, 150, last=True, sender="gone")
    task = asyncio.create_task(_all_events(replica, end))
    await asyncio.sleep(9)
    assert not task.done()  # as long as Serve does not poll, which it does not once it retires it
    started = time.monotonic()
    while not task.done():
        await replica.record_routing_stats()
        await asyncio.sleep(0.5)
    with pytest.raises(LeaseExpired):
        await task
    assert 6 < time.monotonic() - started < 9
    assert meter.value(IMAGES_ORPHANED) == 1
    denoiser.gate.set()
    await first_match(replica.stats, is_empty)
    replica.close()


async def test_a_sample_of_another_numeric_profile_raises_its_named_error(
    replica: StageReplica,
) -> None:
    foreign = replace(sample_of(SPEC, "foreign"), profile="another profile")
    with pytest.raises(ProfileChanged):
        _ = [event async for event in replica.advance(foreign, END)]


async def test_routers_get_the_work_left_and_its_costs_on_this_replica(
    replica: StageReplica,
) -> None:
    async def report() -> ReplicaReport:
        report = ReplicaReport.from_wire(await replica.record_routing_stats())
        assert report is not None
        return report

    task = asyncio.create_task(_all_events(replica))
    sample = sample_of(SPEC, "abandoned")
    first = await first_match(
        report, lambda r: key_of(sample) in r.remaining and r.costs.is_calibrated
    )
    task.cancel()
    work = first.remaining[key_of(sample)]
    bound = replace(sample, spec=replace(SPEC, model="demo"))
    assert work.batch_key == encode_batch_key(bound.usual_batch_key)
    assert 0 < work.steps <= SPEC.steps
    (kind,) = work.kinds
    assert kind.alone in first.costs.seconds_by_turn  # it has steps of its own
    assert kind.step.rows == 4
    assert first.models == (base_key("demo"),)
    assert work.caller == sample.caller
    again = await report()
    assert (again.number, again.profile) == (first.number + 1, first.profile)
    await first_match(replica.stats, is_empty)
    idle = await report()
    assert idle.measured[sample.caller] > 0
    numbers = [(await replica.record_routing_stats())["number"] for _ in range(30)]
    assert 4 <= len(set(numbers)) <= 7


@pytest.mark.long
async def test_a_replica_repeats_its_place_until_its_turn_takes_too_long() -> None:
    denoiser = ConstantDenoiser()
    models = ModelCache.of(analytic_model(denoiser))
    replica = StageReplica(config(demo_folder(Stage.BASE)), load=lambda _: models)
    _ = [event async for event in replica.advance(sample_of(replace(SPEC, steps=2)), END_OF_TWO)]
    report = await replica.record_routing_stats()
    denoiser.patience = 30.0
    denoiser.gate.clear()
    events: list[StageEvent] = []

    async def listen() -> None:
        async for event in replica.advance(sample_of(SPEC, "hung"), END):
            events.insert(len(events), event)

    with pytest.raises(TurnOverdue):
        await listen()
    assert events[0] == Queued()
    assert 4 <= events[1:].count(Progress(0)) <= 6  # one every two seconds, for ten
    assert len(events) == events.count(Progress(0)) + 1
    assert await replica.record_routing_stats() == report  # nothing new is reported
    denoiser.gate.set()
    await first_match(replica.stats, is_empty)
    assert await replica.record_routing_stats() != report
    replica.close()


async def test_the_event_loop_is_free_while_the_engine_steps() -> None:
    denoiser = ConstantDenoiser()
    denoiser.gate.clear()
    models = ModelCache.of(analytic_model(denoiser))
    replica = StageReplica(config(demo_folder(Stage.BASE)), load=lambda _: models)
    task = asyncio.create_task(_all_events(replica))
    assert await asyncio.to_thread(denoiser.entered.wait, 10)  # the engine is inside a step
    stats = await replica.stats()
    assert (stats.engine.turns, list(stats.engine.positions)) == (0, ["abandoned"])
    task.cancel()
    denoiser.gate.set()
    replica.close()


async def test_stats_name_the_process_and_the_models(replica: StageReplica) -> None:
    stats = await replica.stats()
    assert stats.pid == os.getpid()
    assert (stats.engine.models, stats.shortfall) == ((base_key("demo"),), "")
    replica.check_health()


async def test_the_meter_gets_the_engines_numbers_and_at_last_that_nothing_is_owed() -> None:
    meter = InMemoryMeter()
    combined = StageReplica(config(demo_folder(Stage.BASE)), lambda: meter)
    for guidance in (1, 5):
        spec = replace(SPEC, steps=6, guidance=guidance)
        segment = StageSegment(Stage.BASE, 6, last=True)
        _ = [event async for event in combined.advance(sample_of(spec, "finished"), segment)]
        while flushes := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(flushes)  # until an idle replica stops flushing its metrics
    abandoned = asyncio.create_task(_all_events(combined))
    await first_match(combined.stats, holds_sample)
    abandoned.cancel()
    await asyncio.wait([abandoned])
    stats = await first_match(combined.stats, is_empty)
    await until_async(lambda: meter.value(IMAGES_CANCELLED))
    combined.close()
    assert meter.value(IMAGES_CANCELLED) == stats.engine.cancelled == 1
    assert meter.times(STEP_DURATION, stage=Stage.BASE) == stats.engine.turns >= 12
    assert meter.value(STEP_DURATION, stage=Stage.BASE) > 0
    rows = meter.value(STEP_ROWS, stage=Stage.BASE)
    assert rows == 6 * 1 + 6 * 2 + (stats.engine.turns - 12) * 2
    assert rows <= meter.value(STEP_LANES, stage=Stage.BASE) <= 4 * stats.engine.turns
    assert meter.times(QUEUE_TIME, stage=Stage.BASE) in (2, 3)  # it may be cancelled before a step
    assert meter.times(OWED_SECONDS) >= 2
    assert meter.value(OWED_SECONDS) == stats.owed_seconds == 0


@pytest.mark.parametrize("capacity", [1, 2])
async def test_one_replica_runs_base_and_refiner_and_has_loaded_both_when_it_is_ready(
    capacity: int,
) -> None:
    two = (ModelSource("demo", None), ModelSource("polish", None, stage=Stage.REFINER))
    polish = ModelKey(Stage.REFINER, "polish")
    combined = StageReplica(
        replace(config(demo_folder(Stage.BASE)), models=two, max_loaded_models=capacity)
    )
    assert (await combined.stats()).engine.models == (base_key("demo"), polish)
    spec = replace(SPEC, steps=3)
    segments = StageSegment(Stage.BASE, 2, last=False), StageSegment(Stage.REFINER, 3, last=True)
    (*_, begun) = [event async for event in combined.advance(sample_of(spec), segments[0])]
    assert isinstance(begun, SegmentDone)
    handed_over = for_stage(begun.sample, Stage.REFINER)
    (*_, end) = [event async for event in combined.advance(handed_over, segments[1])]
    combined.close()
    assert begun.png is None
    assert isinstance(end, SegmentDone)
    assert end.png is not None
    assert end.png.startswith(b"\x89PNG")
    last = (polish, base_key("demo")) if capacity == 1 else (base_key("demo"), polish)
    assert (await combined.stats()).engine.models == last


def test_an_incomplete_refiner_keeps_a_replica_of_both_stages_from_starting(tmp_path: Path) -> None:
    two = (ModelSource("demo", None), ModelSource("polish", tmp_path, stage=Stage.REFINER))
    with pytest.raises(RuntimeError, match=r"lacks model_index\.json") as refused:
        StageReplica(replace(config(demo_folder(Stage.BASE)), models=two))
    error = read_startup_error(str(refused.value))
    assert error is not None
    assert error.subject == str(tmp_path)


def test_a_replica_configured_for_cuda_refuses_to_start_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="MODEL_DEVICE=cuda"):
        StageReplica(config(demo_folder(Stage.BASE), device="cuda"))
