"""A replica without Ray: the plain class, with the demo behind it."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.capacity.replica_report import ReplicaReport, encode_batch_key, key_of
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import ProfileChanged
from serve_app.core.service.events import SegmentDone, Snapshot
from serve_app.core.service.metrics import (
    IMAGES_CANCELLED,
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

SPEC = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=150, guidance=5)
END = StageSegment(Stage.BASE, 150, last=True)


def config(folder: Path, device: str = "cpu") -> StageConfig:
    return StageConfig(
        models=(ModelSource("demo", folder),),
        device=device,
        precision=None,
        xformers=False,
        cpu_threads=1,
        max_batch_images=2,
        strict=True,
        snapshot_interval_steps=5,
    )


@pytest.fixture(scope="module")
def replica() -> Iterator[StageReplica]:
    replica = StageReplica(config(demo_folder(Stage.BASE)))
    yield replica
    replica.close()


async def test_a_sample_is_walked_with_snapshots_on_the_way_and_a_picture_at_the_end(
    replica: StageReplica,
) -> None:
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=40, guidance=5)
    leg = StageSegment(Stage.BASE, 40, last=True)
    events = [event async for event in replica.advance(sample_of(spec, "walk"), leg)]
    assert all(isinstance(event, Snapshot) for event in events[:-1])
    end = events[-1]
    assert isinstance(end, SegmentDone)
    assert end.png is not None
    assert end.png.startswith(b"\x89PNG")
    while (
        facts := await replica.stats()
    ).engine.positions:  # its last turn is counted after it is told
        await asyncio.sleep(0.005)
    assert 0 < end.gpu_time.measured <= facts.engine.gpu_seconds
    assert (facts.owed_seconds, facts.engine.wasted_gpu_seconds) == (0, 0)
    assert facts.engine.costs.is_calibrated
    assert end.costs.is_calibrated


async def test_what_was_cut_from_a_prompt_comes_with_the_picture(replica: StageReplica) -> None:
    leg, prompt = StageSegment(Stage.BASE, 1, last=True), "a fox" + " BREAK and" * 31
    for requested, cut in ((prompt, False), (f"{prompt} BREAK a red star", True)):
        spec = ImageSpec(prompt=requested, seed=1, width=128, height=128, steps=1, guidance=5)
        *_, end = [event async for event in replica.advance(sample_of(spec, "long"), leg)]
        assert [warning.endswith('"a red star"') for warning in end.sample.warnings] == [True] * cut


async def test_a_caller_that_goes_away_frees_the_engine_within_a_step(
    replica: StageReplica,
) -> None:
    while (await replica.stats()).engine.positions:  # of the one before
        await asyncio.sleep(0.005)
    before = await replica.stats()
    task = asyncio.create_task(_first_event(replica))
    while "left" not in (await replica.stats()).engine.positions:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    departed = await replica.stats()
    while (await replica.stats()).engine.positions:
        await asyncio.sleep(0.005)
    after = await replica.stats()
    assert (
        after.engine.steps - departed.engine.steps <= 2
    )  # the one under way, and one counted since we looked
    assert after.engine.cancelled == before.engine.cancelled + 1


async def _first_event(replica: StageReplica) -> object:
    return [event async for event in replica.advance(sample_of(SPEC, "left"), END)]


async def test_a_named_error_comes_out_by_its_name(replica: StageReplica) -> None:

    stranger = replace(sample_of(SPEC, "stranger"), profile="somebody else's")
    with pytest.raises(ProfileChanged):
        _ = [event async for event in replica.advance(stranger, END)]


async def test_routers_hear_what_is_left_and_what_it_takes_here(replica: StageReplica) -> None:
    async def report() -> ReplicaReport:
        report = ReplicaReport.from_wire(await replica.record_routing_stats())
        assert report is not None
        return report

    task = asyncio.create_task(_first_event(replica))
    sample = sample_of(SPEC, "left")
    while key_of(sample) not in (first := await report()).remaining:
        await asyncio.sleep(0.005)
    task.cancel()
    work = first.remaining[key_of(sample)]
    bound = replace(sample, spec=replace(SPEC, model="demo"))
    assert work.batch_key == encode_batch_key(bound.batch_key)
    assert 0 < work.steps <= SPEC.steps
    assert work.step in first.costs.seconds_by_turn
    assert first.models == (base_key("demo"),)
    again = await report()
    assert (again.number, again.profile) == (first.number + 1, first.profile)
    while (await replica.stats()).engine.positions:
        await asyncio.sleep(0.005)
    numbers = [(await replica.record_routing_stats())["number"] for _ in range(30)]
    assert 4 <= len(set(numbers)) <= 7


async def test_the_event_loop_is_free_while_the_engine_steps() -> None:
    denoiser = ConstantDenoiser()
    denoiser.gate.clear()
    models = ModelCache.of(analytic_model(denoiser))
    replica = StageReplica(config(demo_folder(Stage.BASE)), load=lambda _: models)
    task = asyncio.create_task(_first_event(replica))
    assert await asyncio.to_thread(denoiser.entered.wait, 10)  # the engine is inside a step
    stats = await replica.stats()
    assert (stats.engine.turns, list(stats.engine.positions)) == (0, ["left"])
    task.cancel()
    denoiser.gate.set()
    replica.close()


async def test_stats_name_the_process_and_the_models(replica: StageReplica) -> None:
    stats = await replica.stats()
    assert stats.pid == os.getpid()
    assert (stats.engine.models, stats.shortfall) == ((base_key("demo"),), "")
    replica.check_health()


async def test_the_meter_hears_what_the_engine_did_and_then_that_nothing_is_owed() -> None:
    tally = InMemoryMeter()
    combined = StageReplica(config(demo_folder(Stage.BASE)), lambda: tally)
    for walk in range(2):  # between them it has stopped telling
        spec = replace(SPEC, steps=6, guidance=5 if walk else 1)
        leg = StageSegment(Stage.BASE, 6, last=True)
        _ = [event async for event in combined.advance(sample_of(spec, "walk"), leg)]
        while report_item := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(report_item)
    left = asyncio.create_task(_first_event(combined))
    while "left" not in (await combined.stats()).engine.positions:
        await asyncio.sleep(0.005)
    left.cancel()
    await asyncio.wait([left])
    while (await combined.stats()).engine.positions:
        await asyncio.sleep(0.005)
    while not tally.value(IMAGES_CANCELLED):
        await asyncio.sleep(0.05)
    facts = await combined.stats()
    combined.close()
    assert tally.value(IMAGES_CANCELLED) == facts.engine.cancelled == 1
    assert tally.times(STEP_DURATION, stage=Stage.BASE) == facts.engine.turns >= 12
    assert tally.value(STEP_DURATION, stage=Stage.BASE) > 0
    rows = tally.value(STEP_ROWS, stage=Stage.BASE)
    assert rows == 6 * 1 + 6 * 2 + (facts.engine.turns - 12) * 2
    assert tally.value(STEP_LANES, stage=Stage.BASE) == facts.engine.turns * 4
    assert tally.times(QUEUE_TIME, stage=Stage.BASE) in (2, 3)  # it may have left before a step
    assert tally.times(OWED_SECONDS) >= 2
    assert tally.value(OWED_SECONDS) == facts.owed_seconds == 0


@pytest.mark.parametrize("room", [1, 2])
async def test_one_replica_runs_base_and_refiner_and_has_tried_both_when_it_is_ready(
    room: int,
) -> None:
    two = (ModelSource("demo", None), ModelSource("polish", None, stage=Stage.REFINER))
    polish = ModelKey(Stage.REFINER, "polish")
    combined = StageReplica(
        replace(config(demo_folder(Stage.BASE)), models=two, max_loaded_models=room)
    )
    assert (await combined.stats()).engine.models == (base_key("demo"), polish)
    spec = replace(SPEC, steps=3)
    legs = StageSegment(Stage.BASE, 2, last=False), StageSegment(Stage.REFINER, 3, last=True)
    (*_, begun) = [event async for event in combined.advance(sample_of(spec), legs[0])]
    at_the_door = for_stage(begun.sample, Stage.REFINER)
    (*_, end) = [event async for event in combined.advance(at_the_door, legs[1])]
    combined.close()
    assert isinstance(begun, SegmentDone)
    assert begun.png is None
    assert isinstance(end, SegmentDone)
    assert end.png is not None
    assert end.png.startswith(b"\x89PNG")
    last = (polish, base_key("demo")) if room == 1 else (base_key("demo"), polish)
    assert (await combined.stats()).engine.models == last


def test_a_refiner_that_is_not_whole_keeps_a_replica_of_both_from_starting(tmp_path: Path) -> None:
    two = (ModelSource("demo", None), ModelSource("polish", tmp_path, stage=Stage.REFINER))
    with pytest.raises(RuntimeError, match=r"lacks model_index\.json") as refused:
        StageReplica(replace(config(demo_folder(Stage.BASE)), models=two))
    error = read_startup_error(str(refused.value))
    assert error is not None
    assert error.subject == str(tmp_path)


def test_a_replica_promised_cuda_that_finds_none_refuses_to_start() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    with pytest.raises(RuntimeError, match="MODEL_DEVICE=cuda"):
        StageReplica(config(demo_folder(Stage.BASE), device="cuda"))
