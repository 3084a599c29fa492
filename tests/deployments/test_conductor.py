"""The image's way through the stages, with stages that count steps instead of denoising."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.demand import Demand
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    DeadlineExceeded,
    Draining,
    EngineFault,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.scheduling.work import BatchSize, WorkKind
from serve_app.core.service.events import (
    Generated,
    GeneratedImage,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    last_image,
)
from serve_app.core.service.info import HealthStatus, ModelInfo
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.stage_client import StageClient
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import (
    BlockedStage,
    CountingStage,
    JumpingLoop,
    SlowStage,
    StageEvents,
    dies_at,
)

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5, handoff=0.8)


def conductor_of(
    base: StageClient,
    refiner: StageClient | None = None,
    *,
    models: tuple[str, ...] = ("demo",),
    scale_to_zero: tuple[Stage, ...] = (),
) -> Conductor:
    infos = [ModelInfo(name, 64, NOISE) for name in models]
    return Conductor(base, refiner, infos, scale_to_zero=scale_to_zero)


async def generate(
    conductor: Conductor,
    id: str = "a",
    spec: ImageSpec = SPEC,
    init_image: bytes | None = None,
    timeout_s: float | None = None,
) -> GeneratedImage:
    task = ImageTask(id=id, spec=spec, inputs=ImageInputs(init_image), timeout_s=timeout_s)
    return await last_image(conductor.run(task))


async def test_every_stage_gets_the_caller_of_an_image() -> None:
    base, refiner = CountingStage(), CountingStage()
    task = ImageTask(id="a", spec=SPEC, caller=Caller("key:1", 3.0))
    await last_image(conductor_of(base, refiner).run(task))
    assert [*base.callers, *refiner.callers] == [task.caller, task.caller]


async def test_an_image_goes_through_base_to_the_handoff_and_the_refiner_to_the_end() -> None:
    base, refiner = CountingStage(), CountingStage()
    assert (await generate(conductor_of(base, refiner))).png == b"png 20"
    assert base.calls == [(0, StageSegment(Stage.BASE, 16, last=False))]
    assert refiner.calls == [(16, StageSegment(Stage.REFINER, 20, last=True))]


async def test_the_stream_has_every_snapshot_each_segment_s_end_and_the_image_last() -> None:
    events = conductor_of(CountingStage(), CountingStage()).run(ImageTask(id="a", spec=SPEC))
    seen = [event async for event in events]
    assert [type(event) for event in seen] == [
        *[Snapshot] * 3,  # after 5, 10 and 15 steps
        SegmentDone,
        Snapshot,
        *(SegmentDone, Generated),
    ]
    indices = [event.sample.index for event in seen if isinstance(event, Snapshot | SegmentDone)]
    assert indices == [5, 10, 15, 16, 20, 20]
    profiles = ((Stage.BASE, "p"), (Stage.REFINER, "p"))
    assert seen[-1] == Generated(GeneratedImage(b"png 20", profiles))


class ModernStage(CountingStage):
    """Streams an event that no consumer knows."""

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        yield cast(Any, "progress")
        async for event in super().advance(sample, segment):
            yield event


async def test_an_event_that_the_conductor_does_not_know_is_an_error() -> None:
    with pytest.raises(AssertionError, match="progress"):
        await generate(conductor_of(ModernStage()))


async def test_each_model_has_a_schedule_of_its_own_noise() -> None:
    samples: list[Sample[Any]] = []

    class RecordingStage(CountingStage):
        async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
            samples.append(sample)
            async for event in super().advance(sample, segment):
                yield event

    other = replace(NOISE, timestep_spacing="trailing")
    models = [ModelInfo("demo", 64, NOISE), ModelInfo("other", 64, other)]
    conductor = Conductor(RecordingStage(), None, models)
    for spec in (SPEC, replace(SPEC, model="demo"), replace(SPEC, model="other")):
        await generate(conductor, spec=spec)
    assert [sample.spec.model for sample in samples] == ["demo", "demo", "other"]
    schedules = [sample.schedule for sample in samples]
    assert schedules[0] == schedules[1] == make_schedule(NOISE, SPEC.sampler, 20, None, 0.8)
    assert schedules[2] == make_schedule(other, SPEC.sampler, 20, None, 0.8)
    with pytest.raises(ModelNotFound, match=r"model is unknown\. Available: demo, other"):
        await generate(conductor, spec=replace(SPEC, model="none"))


async def test_warnings_of_both_stages_come_with_the_image_each_once() -> None:
    base = CountingStage(warnings=("cut", "weighed"), fault=dies_at((0, 13)))
    refiner = CountingStage(warnings=("cut", "more"))
    image = await generate(conductor_of(base, refiner))
    assert image.warnings == ("cut", "weighed", "more")
    assert (await generate(conductor_of(CountingStage()))).warnings == ()


async def test_without_a_refiner_base_makes_the_whole_image() -> None:
    base = CountingStage()
    assert (await generate(conductor_of(base))).png == b"png 20"
    assert base.calls == [(0, StageSegment(Stage.BASE, 20, last=True))]


async def test_a_lost_replica_costs_the_steps_since_the_last_snapshot() -> None:
    base = CountingStage(fault=dies_at((0, 13)))
    assert (await generate(conductor_of(base))).png == b"png 20"
    assert [index for index, _ in base.calls] == [0, 10]
    assert base.steps == 20 + 3


async def test_a_lost_refiner_does_not_send_the_image_back_to_base() -> None:
    base, refiner = CountingStage(), CountingStage(fault=dies_at((0, 18)))
    assert (await generate(conductor_of(base, refiner))).png == b"png 20"
    assert base.steps == 16
    assert [index for index, _ in refiner.calls] == [16, 16]


async def test_replicas_may_die_again_and_again_as_long_as_the_image_makes_progress() -> None:
    base = CountingStage(fault=dies_at((0, 7), (1, 12), (2, 17), (3, 19)))
    assert (await generate(conductor_of(base))).png == b"png 20"


async def test_an_image_that_kills_every_replica_at_one_step_is_given_up() -> None:
    base = CountingStage(fault=dies_at(*((call, 3) for call in range(9))))
    with pytest.raises(ReplicaLost):
        await generate(conductor_of(base))
    assert len(base.calls) == 3


async def test_under_another_numeric_profile_the_image_starts_again_from_the_first_step() -> None:
    def fault(call: int, sample: Sample[Any]) -> Exception | None:
        if (call, sample.index) == (0, 12):
            return ReplicaLost("the replica is gone")
        return ProfileChanged("another card") if call == 1 else None

    base = CountingStage(fault=fault)
    image = await generate(conductor_of(base))
    assert (image.png, image.profiles) == (b"png 20", ((Stage.BASE, "p"),))
    assert [index for index, _ in base.calls] == [0, 10, 0]


async def test_a_profile_that_changes_again_and_again_ends_the_image() -> None:
    base = CountingStage(fault=lambda call, sample: ProfileChanged("again"))
    with pytest.raises(ReplicaLost, match="again and again"):
        await generate(conductor_of(base))


async def test_other_errors_end_the_image_at_once() -> None:
    base = CountingStage(fault=lambda call, sample: OutOfMemory("no memory"))
    with pytest.raises(OutOfMemory):
        await generate(conductor_of(base))
    assert len(base.calls) == 1


async def test_a_late_image_is_cancelled_and_reported_as_late() -> None:
    base = BlockedStage()
    with pytest.raises(DeadlineExceeded, match=r"within 0 s"):
        await generate(conductor_of(base), timeout_s=0.05)
    assert base.closed == 1


async def test_cancelling_the_call_closes_the_stream_and_takes_the_image_off_the_backlog() -> None:
    base = BlockedStage()
    conductor = conductor_of(base)
    task = asyncio.create_task(generate(conductor))
    await base.has_calls(1)
    assert conductor.owed_seconds() > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert base.closed == 1
    assert conductor.owed_seconds() == 0


async def test_closing_the_stream_cancels_the_image() -> None:
    base = CountingStage()
    conductor = conductor_of(base)
    async with aclosing(conductor.run(ImageTask(id="a", spec=SPEC))) as events:
        assert isinstance(await anext(events), Snapshot)
        assert conductor.owed_seconds() > 0
    assert base.closed == 1
    assert conductor.owed_seconds() == 0


async def test_an_image_that_would_be_late_is_refused_and_those_before_it_count_by_batches() -> (
    None
):
    step = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "demo"), 64, 64, 4)
    prompt = TurnKind(WorkKind.CONDITION, ModelKey(Stage.BASE, "demo"), rows=2)
    known = {step: 1.0, replace(step, work=WorkKind.DECODE, rows=0): 0.0, prompt: 0.0}
    base = BlockedStage(
        free=1, costs=CostTable(known, {ModelKey(Stage.BASE, "demo"): BatchSize(2, 4)})
    )
    conductor = conductor_of(base)
    await generate(conductor, "warm")
    with pytest.raises(Overloaded, match=r"about 20 s, and 19 s"):
        await generate(conductor, timeout_s=19)
    shorter = replace(SPEC, steps=10)
    tasks = [
        asyncio.create_task(generate(conductor, str(n), shorter, timeout_s=60)) for n in range(4)
    ]
    await base.has_calls(1 + 4)
    assert conductor.owed_seconds() == 20  # two batches of ten steps
    with pytest.raises(Overloaded, match=r"about 40 s, and 39 s"):
        await generate(conductor, timeout_s=39)
    tasks.append(asyncio.create_task(generate(conductor, timeout_s=41)))
    await base.has_calls(1 + 5)
    assert not any(task.done() for task in tasks)
    base.release.set()
    assert {image.png for image in await asyncio.gather(*tasks)} == {b"png 10", b"png 20"}


STEPS = {stage: TurnKind(WorkKind.STEP, ModelKey(stage, "demo"), 64, 64, 4) for stage in Stage}
PROMPTS = [TurnKind(WorkKind.CONDITION, ModelKey(stage, "demo"), rows=2) for stage in Stage]
FREE = dict.fromkeys([*PROMPTS, replace(STEPS[Stage.REFINER], work=WorkKind.DECODE, rows=0)], 0.0)
SECOND = CostTable(
    {**dict.fromkeys(STEPS.values(), 1.0), **FREE}, {ModelKey(Stage.BASE, "demo"): BatchSize(2, 4)}
)


async def test_demands_count_images_at_a_stage_or_upstream_and_all_that_ever_arrived() -> None:
    base, refiner = BlockedStage(costs=SECOND), BlockedStage(costs=SECOND)
    base.ready = refiner.ready = 0
    conductor = conductor_of(base, refiner)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())
    first = asyncio.create_task(generate(conductor, "first"))
    await base.has_calls(1)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand(1))  # no costs are known yet
    base.release.set()
    refiner.release.set()
    await first
    base.release.clear()
    refiner.release.clear()
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())  # nor were they counted
    tasks = [asyncio.create_task(generate(conductor, id)) for id in "abc"]
    tasks.append(asyncio.create_task(generate(conductor, "d", replace(SPEC, handoff=0))))
    await base.has_calls(1 + 3)
    await refiner.has_calls(1 + 1)
    # of twenty steps base has 16, and two step together
    wanted = {Stage.BASE: Demand(3, 24, 0, 24), Stage.REFINER: Demand(4, 16, 6, 16)}
    assert await conductor.demands() == wanted
    base.release.set()
    await refiner.has_calls(1 + 4)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(4, 16, 0, 16)}
    assert await conductor.demands() == wanted
    refiner.release.set()
    await asyncio.gather(*tasks)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(0, 0, 0, 16)}
    assert await conductor.demands() == wanted


async def test_a_new_conductor_takes_the_costs_of_a_step_from_the_replicas() -> None:
    base, refiner = BlockedStage(costs=SECOND), BlockedStage(costs=SECOND)
    conductor = conductor_of(base, refiner)
    task = asyncio.create_task(generate(conductor, "first"))
    await base.has_calls(1)
    assert await conductor.demands() == {Stage.BASE: Demand(1, 8), Stage.REFINER: Demand(1, 2, 2)}
    base.release.set()
    refiner.release.set()
    await task


async def test_a_refused_image_is_no_demand() -> None:
    conductor = conductor_of(CountingStage(costs=SECOND), CountingStage(costs=SECOND))
    await generate(conductor, "warm")
    with pytest.raises(Overloaded):
        await generate(conductor, timeout_s=1)
    assert await conductor.demands() == dict.fromkeys(Stage, Demand())


async def test_without_a_refiner_there_is_no_demand_for_one() -> None:
    assert set(await conductor_of(CountingStage()).demands()) == {Stage.BASE}


async def timeout_beside(models: tuple[str, ...], *specs: ImageSpec) -> float:
    """Return the default timeout beside images in flight, but for the time of their own steps."""
    base, refiner = BlockedStage(), BlockedStage()
    conductor = conductor_of(base, refiner, models=models)
    tasks = [
        asyncio.create_task(generate(conductor, str(number), spec))
        for number, spec in enumerate(specs)
    ]
    at_refiner = sum(spec.handoff == 0 for spec in specs)
    await base.has_calls(len(specs) - at_refiner)
    await refiner.has_calls(at_refiner)
    timeout = conductor.default_timeout() - 4 * conductor.owed_seconds()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return round(timeout, 6)


async def test_the_default_timeout_grows_with_the_models_that_may_have_to_be_loaded() -> None:
    fox, owl = replace(SPEC, model="fox"), replace(SPEC, model="owl")
    assert await timeout_beside(("fox",), fox, SPEC) == 60  # the only model is always loaded
    assert await timeout_beside(("fox", "owl"), fox) == 180  # may have been evicted for the other
    assert await timeout_beside(("fox", "owl", "ink"), fox, owl, SPEC) == 300
    refiner_alone = replace(owl, handoff=0)
    assert await timeout_beside(("fox", "owl"), fox, refiner_alone) == 180


async def test_the_default_timeout_leaves_time_for_a_stage_at_zero_replicas_to_start() -> None:
    base, refiner = BlockedStage(), BlockedStage()
    assert conductor_of(base, refiner).default_timeout() == 60
    cold = conductor_of(base, refiner, scale_to_zero=(Stage.REFINER,))
    assert cold.default_timeout() == 180


def png_on_a_jumping_clock(conductor: Conductor, timeout_s: float | None) -> bytes:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(generate(conductor, timeout_s=timeout_s)).png


def test_the_default_timeout_is_long_enough_to_load_a_model() -> None:
    several = conductor_of(SlowStage(100), models=("fox", "owl"))
    assert png_on_a_jumping_clock(several, None) == b"png 20"
    with pytest.raises(DeadlineExceeded, match=r"within 6\d s"):
        png_on_a_jumping_clock(conductor_of(SlowStage(100)), None)


def test_the_default_timeout_starts_again_when_a_loss_is_noticed() -> None:
    """The first replica is lost in the middle, and each call takes fifty seconds."""
    stage = SlowStage(50, fault=dies_at((0, 8)))
    assert png_on_a_jumping_clock(conductor_of(stage), None) == b"png 20"
    stage = SlowStage(50, fault=dies_at((0, 8)))
    with pytest.raises(DeadlineExceeded, match="within 70 s"):
        png_on_a_jumping_clock(conductor_of(stage), 70)


class RepeatingStage(CountingStage):
    """Reports its place again and again, as heartbeats do."""

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        for event in (Queued(), Queued(), Progress(0), Progress(0), Progress(3), Queued()):
            yield event
        async for end in super().advance(sample, segment):
            yield end


async def test_an_event_that_says_nothing_new_is_not_passed_on() -> None:
    events = conductor_of(RepeatingStage()).run(ImageTask(id="a", spec=SPEC))
    seen = [event async for event in events if isinstance(event, Queued | Progress)]
    assert seen == [Queued(), Progress(0), Progress(3), Queued()]


class SilentStage(CountingStage):
    """Ends without a result."""

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        for _ in ():
            yield _


async def test_a_stage_that_ends_without_a_result_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="without a result"):
        await generate(conductor_of(SilentStage()))


class BlankStage(CountingStage):
    """Decodes nothing at the end."""

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        async for event in super().advance(sample, replace(segment, last=False)):
            yield event


async def test_a_last_stage_without_an_image_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="no image"):
        await generate(conductor_of(BlankStage()))


async def test_health_names_the_stage_that_is_not_ready() -> None:
    health = await conductor_of(CountingStage(ready=2), CountingStage()).health()
    assert health.status is HealthStatus.READY
    assert health.replicas == {"base": 2, "refiner": 1}
    assert health.owed_seconds == 4.5
    health = await conductor_of(CountingStage(), CountingStage(ready=0)).health()
    assert health.status is HealthStatus.LOADING
    assert health.reason == "no replica of refiner is ready yet"


async def test_a_stage_that_scales_to_zero_may_have_no_replica() -> None:
    refiner = CountingStage(ready=0)
    conductor = conductor_of(CountingStage(), refiner, scale_to_zero=(Stage.REFINER,))
    health = await conductor.health()
    assert (health.status, health.reason) == (HealthStatus.READY, "")
    assert health.replicas == {"base": 1, "refiner": 0}
    for id in "ab":  # the second one with known costs
        assert (await generate(conductor, id, timeout_s=60)).png == b"png 20"
    conductor = conductor_of(CountingStage(ready=0), refiner, scale_to_zero=(Stage.REFINER,))
    health = await conductor.health()
    assert (health.status, health.reason) == (
        HealthStatus.LOADING,
        "no replica of base is ready yet",
    )


async def test_health_lists_what_the_devices_of_a_stage_lack_each_once() -> None:
    base = CountingStage(ready=3, shortfall="too little memory")
    health = await conductor_of(base, CountingStage()).health()
    assert health.shortfalls == ("base: too little memory",)


async def test_a_client_that_is_both_stages_is_counted_once_and_listed_for_both() -> None:
    stage = CountingStage(ready=2, shortfall="too little memory")
    conductor = conductor_of(stage, stage)
    health = await conductor.health()
    assert health.replicas == {"base": 2, "refiner": 2}
    assert health.owed_seconds == 3.0
    assert health.shortfalls == ("base and refiner: too little memory",)
    assert (await generate(conductor)).png == b"png 20"
    assert [segment.stage for _, segment in stage.calls] == [Stage.BASE, Stage.REFINER]
    unready = CountingStage(ready=0)
    health = await conductor_of(unready, unready).health()
    assert health.reason == "no replica of base and refiner is ready yet"


async def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    base = BlockedStage()
    conductor = conductor_of(base)
    task = asyncio.create_task(generate(conductor))
    await base.has_calls(1)
    drained = asyncio.create_task(conductor.drain())
    async with asyncio.timeout(30):
        while (await conductor.health()).status is not HealthStatus.DRAINING:
            pass
    with pytest.raises(Draining):
        await generate(conductor, "b")
    assert not drained.done()
    base.release.set()
    await task
    await drained


async def test_an_image_that_enters_after_the_handoff_skips_base() -> None:
    base, refiner = CountingStage(), CountingStage()
    late = replace(SPEC, strength=0.1)
    await generate(conductor_of(base, refiner), spec=late, init_image=bytes(64 * 64 * 3))
    assert not base.calls
    assert refiner.calls[0][0] == 18
