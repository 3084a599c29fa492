"""Images whose replicas die, hang or fall silent: who continues where, who runs alone, who ends."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import ImageKillsReplica
from serve_app.core.replica_errors import (
    LeaseExpired,
    ReplicasExhausted,
    ReplicaSilent,
    TakenOver,
    TurnOverdue,
)
from serve_app.core.service.backlog import ImageInFlight
from serve_app.core.service.convictions import Conviction
from serve_app.core.service.events import (
    Accepted,
    Progress,
    Queued,
    ReplicaStats,
    StageEvent,
    last_image,
)
from serve_app.core.service.info import HealthStatus, ModelInfo
from serve_app.core.service.metrics import (
    IMAGES_CONVICTED,
    IMAGES_QUARANTINED,
    IMAGES_RESUMED,
    REPLICAS_SILENT,
    InMemoryMeter,
    ResumeReason,
)
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.admission import Admission
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.deadline import Deadline
from serve_app.deployments.segment_run import SegmentRun
from serve_app.deployments.silence import watch_silence
from serve_app.deployments.stage_client import StageClient
from serve_app.deployments.watches import Watches
from tests.support.builders import replica_stats
from tests.support.engine_runs import NOISE
from tests.support.images import image, segment_of
from tests.support.sick_stages import BatchingReplica
from tests.support.stage_doubles import CountingStage, JumpingLoop, dies_at

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=30, guidance=5)
MODEL = ModelInfo("demo", 1024, NOISE)


class Service:
    """A conductor over one replica, whose turns run as fast as the images come."""

    def __init__(
        self,
        replica: BatchingReplica,
        on_conviction: Callable[[Conviction], None] = lambda conviction: None,
    ) -> None:
        self.replica, self.meter = replica, InMemoryMeter()
        self.conductor = Conductor(replica, None, [MODEL], self.meter, on_conviction=on_conviction)

    async def make(
        self, *ids: str, kill_at: int | None = None, drawn_seed: int | None = None
    ) -> dict[str, str]:
        """Make images; return how each ended. Kill the replica before turn `kill_at`, if given."""
        tasks = {id: asyncio.create_task(self._make(id, drawn_seed)) for id in ids}
        turns = 0
        while not all(task.done() for task in tasks.values()):
            for _ in range(8):  # for the events of the last turn to arrive
                await asyncio.sleep(0)
            if turns == kill_at:
                self.replica.kill()
            else:
                self.replica.turn()
            turns += 1
            assert turns < 1000
        return {id: task.result() for id, task in tasks.items()}

    async def _make(self, id: str, drawn_seed: int | None) -> str:
        seed = SPEC.seed if drawn_seed is None else drawn_seed
        spec, is_drawn = replace(SPEC, prompt=id, seed=seed), drawn_seed is not None
        task = ImageTask(id=id, spec=spec, has_drawn_seed=is_drawn)
        try:
            await last_image(self.conductor.run(task))
        except (ImageKillsReplica, ReplicasExhausted) as error:
            return type(error).__name__
        return "made"


@pytest.mark.parametrize("deadly", [{0}, {3}, {6, 12, 18, 24}, {29}])
async def test_an_image_that_kills_its_replica_costs_two_and_bystanders_are_made(
    deadly: set[int],
) -> None:
    service = Service(BatchingReplica({"bad": deadly}))
    ends = await service.make("a", "bad", "b", "c")
    assert ends == {"a": "made", "b": "made", "c": "made", "bad": "ImageKillsReplica"}
    assert service.replica.deaths == 2
    assert service.meter.value(IMAGES_CONVICTED, stage="base") == 1


async def test_an_image_that_kills_again_after_its_quarantine_costs_three_replicas() -> None:
    deadly = {"bad": set(range(8, 30, 8))}
    service = Service(BatchingReplica(deadly, spares_next_time=True))
    ends = await service.make("a", "bad", "b")
    assert ends == {"a": "made", "b": "made", "bad": "ImageKillsReplica"}
    assert service.replica.deaths == 3


async def test_a_convicted_image_is_refused_at_once_and_other_images_are_made() -> None:
    service = Service(BatchingReplica({"bad": {3}}))
    assert await service.make("bad") == {"bad": "ImageKillsReplica"}
    calls = len(service.replica.segments)
    assert await service.make("bad", "good") == {"bad": "ImageKillsReplica", "good": "made"}
    assert len(service.replica.segments) == calls + 1


async def test_a_convicted_image_whose_seed_is_drawn_anew_is_refused_at_once() -> None:
    service = Service(BatchingReplica({"bad": {3}}))
    for seed in (5, 6):
        ends = await service.make("bad", drawn_seed=seed)
        assert ends == {"bad": "ImageKillsReplica"}
    assert service.replica.deaths == 2
    assert await service.make("good", drawn_seed=5) == {"good": "made"}


@pytest.mark.parametrize("kill_at", [1, 4, 17, 29])
async def test_a_replica_that_somebody_kills_convicts_none_of_its_images(kill_at: int) -> None:
    service = Service(BatchingReplica())
    ends = await service.make("a", "b", "c", kill_at=kill_at)
    assert set(ends.values()) == {"made"}
    alone = [batch for batch in service.replica.batches if len(batch) == 1]
    assert 3 * 1 <= len(alone) <= 3 * 8  # a few steps each, and then together again
    assert service.meter.value(IMAGES_QUARANTINED, stage="base") == 3
    assert service.meter.value(IMAGES_CONVICTED, stage="base") == 0


async def test_what_one_ingress_has_convicted_another_one_refuses_at_once() -> None:
    other = Service(BatchingReplica({"bad": {3}}))
    service = Service(BatchingReplica({"bad": {3}}), other.conductor.convict)
    assert await service.make("bad") == {"bad": "ImageKillsReplica"}
    assert await other.make("bad", "good") == {"bad": "ImageKillsReplica", "good": "made"}
    assert other.replica.deaths == 0


async def test_an_image_ends_after_five_lost_replicas() -> None:
    stage = CountingStage(fault=dies_at(*((call, 3) for call in range(9))))
    meter = InMemoryMeter()
    conductor = Conductor(stage, None, [MODEL], meter)
    with pytest.raises(ReplicasExhausted, match="5 replicas"):
        await last_image(conductor.run(ImageTask(id="a", spec=SPEC)))
    assert len(stage.calls) == 5
    assert [segment.alone for _, segment in stage.calls] == [0, 1, 2, 4, 8]


class SickReplica(CountingStage):
    """Replicas in turn: the first ones end their streams as given, the last is well."""

    def __init__(self, *ends: Exception | None) -> None:
        super().__init__()
        self.ends = list(ends)  # None: no event ever comes
        self.left = 0  # streams that were closed without an end

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        yield Accepted(f"r{len(self.calls)}")
        yield Queued()
        if self.ends:
            self.calls.append((sample.index, segment))
            yield Progress(sample.index)
            if error := self.ends.pop(0):
                raise error
            try:
                await asyncio.Event().wait()
            finally:
                self.left += 1
        async for event in super().advance(sample, segment):
            yield event


def run_over(stage: StageClient, meter: InMemoryMeter) -> SegmentRun:
    stages = {Stage.BASE: stage}
    admission = Admission(stages, AdmissionLimits(), meter)
    return SegmentRun(
        stages,
        admission,
        meter,
        lambda image: 60.0,
        Watches(stages),
        silence=lambda seconds: 0.05,
    )


async def ours() -> None:
    """Confirm that a job is this process's own."""


async def finish(
    run: SegmentRun,
    sample: Sample[Any],
    confirm: Callable[[], Awaitable[None]] = ours,
) -> ImageInFlight:
    image = ImageInFlight(sample, (segment_of(sample),))
    end = asyncio.get_running_loop().time() + 60
    deadline = Deadline(end, allowed=60, is_chosen=False)
    async for _ in run.events(image, image.segments[0], deadline, confirm):
        pass
    return image


async def test_a_lease_that_expires_again_and_again_costs_no_image_and_makes_no_suspect() -> None:
    stage, meter = SickReplica(*[LeaseExpired("slow")] * 9), InMemoryMeter()
    done = await finish(run_over(stage, meter), image("a"))
    assert done.png == b"png 20"
    assert [segment.alone or bool(segment.avoid) for _, segment in stage.calls] == [False] * 10
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.EXPIRED) == 9


async def test_an_image_whose_job_another_process_has_ends_when_its_lease_expires() -> None:
    async def taken() -> None:
        raise TakenOver("another process has the job")

    stage = SickReplica(LeaseExpired("slow"))
    with pytest.raises(TakenOver):
        await finish(run_over(stage, InMemoryMeter()), image("a"), taken)
    assert len(stage.calls) == 1


async def test_a_silent_replica_is_left_and_avoided() -> None:
    stage, meter = SickReplica(None), InMemoryMeter()
    done = await finish(run_over(stage, meter), image("a"))
    assert done.png == b"png 20"
    assert stage.left == 1
    assert [segment.avoid for _, segment in stage.calls] == [(), ("r0",)]
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.SILENT) == 1
    assert meter.value(REPLICAS_SILENT, stage="base") == 1


async def test_a_replica_whose_turn_hangs_is_left_at_once() -> None:
    stage, meter = SickReplica(TurnOverdue("hangs")), InMemoryMeter()
    done = await finish(run_over(stage, meter), image("a"))
    assert done.png == b"png 20"
    assert [segment.avoid for _, segment in stage.calls] == [(), ("r0",)]
    assert [segment.alone for _, segment in stage.calls] == [False, True]


async def test_silence_alone_never_convicts_and_ends_an_image_after_five_replicas() -> None:
    class SilentAlone(SickReplica):
        async def advance(
            self, sample: Sample[Any], segment: StageSegment
        ) -> AsyncGenerator[StageEvent, None]:
            self.calls.append((sample.index, segment))
            yield Progress(sample.index, alone=segment.alone > 0)
            raise ReplicaSilent("no news")

    stage = SilentAlone()
    with pytest.raises(ReplicasExhausted):
        await finish(run_over(stage, InMemoryMeter()), image("a"))
    assert len(stage.calls) == 5


async def test_an_image_may_wait_for_a_replica_for_as_long_as_it_takes() -> None:
    class Late(CountingStage):
        async def before_first_step(self, call: int) -> None:
            await asyncio.sleep(0.2)  # four times what counts as silence

    stage = Late()
    done = await finish(run_over(stage, InMemoryMeter()), image("a"))
    assert done.png == b"png 20"
    assert len(stage.calls) == 1


def test_time_in_which_the_event_loop_was_held_up_is_no_silence() -> None:
    async def events() -> AsyncGenerator[int, None]:
        yield 1
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.offset += 60
        await asyncio.sleep(0.01)
        yield 2

    async def collect() -> list[int]:
        return [event async for event in watch_silence(events(), 10.0)]

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        assert runner.run(collect()) == [1, 2]


async def test_a_replica_that_hangs_counts_as_none() -> None:
    class Hanging(CountingStage):
        async def stats(self) -> list[ReplicaStats]:
            return [replica_stats(is_hanging=True), *[replica_stats()] * self.ready]

    reason = "a replica of base hangs and will be replaced"
    loading = f"no replica of base is ready yet; {reason}"
    for well, status, why in (
        (1, HealthStatus.DEGRADED, reason),
        (0, HealthStatus.LOADING, loading),
    ):
        stage = Hanging(ready=well)
        health = await Conductor(stage, None, [MODEL]).health()
        assert (health.status, health.reason, health.replicas) == (status, why, {"base": well})
