"""The image's way through the stages, with stages that count steps instead of denoising."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    DeadlineExceeded,
    EngineFault,
    ModelNotFound,
    OutOfMemory,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.replica_errors import ReplicasExhausted
from serve_app.core.service.events import (
    Generated,
    GeneratedImage,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    last_image,
)
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from tests.support.conductors import SPEC, conductor_of, generate
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import (
    BlockedStage,
    CountingStage,
    StageEvents,
    dies_at,
)


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
    with pytest.raises(ReplicasExhausted, match="5 replicas"):
        await generate(conductor_of(base))
    assert len(base.calls) == 5


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
    await generate(conductor)  # from now on the seconds of a step are known
    async with aclosing(conductor.run(ImageTask(id="a", spec=SPEC))) as events:
        assert isinstance(await anext(events), Snapshot)
        assert conductor.owed_seconds() > 0
    assert base.closed == 2
    assert conductor.owed_seconds() == 0


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


async def test_an_image_that_enters_after_the_handoff_skips_base() -> None:
    base, refiner = CountingStage(), CountingStage()
    late = replace(SPEC, strength=0.1)
    await generate(conductor_of(base, refiner), spec=late, init_image=bytes(64 * 64 * 3))
    assert not base.calls
    assert refiner.calls[0][0] == 18
