import pickle
from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar, cast

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import EngineFault
from serve_app.core.scheduling.work import BatchSize, WorkKind
from serve_app.core.service.events import (
    Generated,
    GeneratedImage,
    ImageEvent,
    Preview,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    last_image,
)
from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobDone,
    JobEvent,
    JobStarted,
    StageDone,
    last_result,
)
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageTask
from tests.support.builders import replica_stats

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SAMPLE: Sample[float] = new_sample(
    "a", SPEC, make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0), Stage.BASE
)


IMAGE = GeneratedImage(b"png", ((Stage.BASE, "p"),), ("cut",))
DONE = SegmentDone(SAMPLE, b"png", GpuTime(2.0), CostTable())


RESULT = JobResult((b"png",), "{}", 1.0)
E = TypeVar("E", ImageEvent, JobEvent)


class Stream(Generic[E]):
    """A stream of events that notes whether it was closed."""

    def __init__(self, *events: E) -> None:
        self._events: tuple[E, ...] = events
        self.closed = False

    async def open(self) -> AsyncGenerator[E, None]:
        try:
            for event in self._events:
                yield event
        finally:
            self.closed = True


async def test_the_image_of_a_stream_is_what_its_last_event_brings() -> None:
    events: list[ImageEvent] = [
        Queued(),
        Progress(0),
        Preview(0, b"jpeg"),
        Snapshot(SAMPLE),
        DONE,
        Generated(IMAGE),
    ]
    stream, observed = Stream(*events), list[ImageEvent]()
    assert await last_image(stream.open(), observed.append) is IMAGE
    assert observed == events
    assert stream.closed


async def test_the_result_of_a_job_is_what_its_last_event_brings() -> None:
    stream = Stream[JobEvent](
        JobStarted("a"),
        ImageProgress(0, Outlook(Stage.BASE, 0, 4)),
        ImagePreview(0, b"jpeg"),
        StageDone(0, Stage.BASE),
        ImageMade(0, b"png", 7),
        JobDone(RESULT),
    )
    assert await last_result(stream.open()) is RESULT
    assert stream.closed


async def test_a_stream_that_ends_early_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="without an image"):
        await last_image(Stream[ImageEvent](DONE).open())
    with pytest.raises(EngineFault, match="without a result"):
        await last_result(Stream[JobEvent](JobStarted("a")).open())


async def test_an_event_that_the_consumer_does_not_know_is_an_error() -> None:
    stream = Stream[ImageEvent](cast(Any, "progress"), Generated(IMAGE))
    with pytest.raises(AssertionError, match="progress"):
        await last_image(stream.open())
    assert stream.closed
    job = Stream[JobEvent](cast(Any, "queued"), JobDone(RESULT))
    with pytest.raises(AssertionError, match="queued"):
        await last_result(job.open())
    assert job.closed


def test_what_travels_between_processes_arrives_equal() -> None:
    costs = CostTable(
        {TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "fox"), 64, 64, 8): 0.1},
        {ModelKey(Stage.BASE, "fox"): BatchSize(4, (8,))},
    )
    stats = replica_stats(gpu_seconds=2.0, costs=costs, positions={"a": 3})
    job = Job("a", "key:1", "o", 1.0, JobState.SUCCEEDED, None, RESULT)
    claim, claimed = IdempotencyClaim("s", "f", 7), ClaimResult("a", 7, is_owner=True)
    done = SegmentDone(SAMPLE, b"png", GpuTime(2.0), costs)
    task = ImageTask(id="a", spec=SPEC, timeout_s=9.0, caller=Caller("key:1", 3.0))
    for value in (SAMPLE, Snapshot(SAMPLE), done, stats, IMAGE, task, job, claim, claimed):
        assert pickle.loads(pickle.dumps(value)) == value
