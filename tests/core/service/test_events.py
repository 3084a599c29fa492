import pickle
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

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
    SegmentDone,
    Snapshot,
    last_image,
)
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.tasks import ImageTask
from tests.support.builders import replica_stats

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SAMPLE: Sample[float] = new_sample(
    "a", SPEC, make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0), Stage.BASE
)


IMAGE = GeneratedImage(b"png", ((Stage.BASE, "p"),), ("cut",))
DONE = SegmentDone(SAMPLE, b"png", GpuTime(2.0), CostTable())


class Stream:
    """A stream of events that notes whether it was closed."""

    def __init__(self, *events: ImageEvent) -> None:
        self._events = events
        self.closed = False

    async def open(self) -> AsyncGenerator[ImageEvent, None]:
        try:
            for event in self._events:
                yield event
        finally:
            self.closed = True


async def test_the_image_of_a_stream_is_what_its_last_event_brings() -> None:
    stream = Stream(Snapshot(SAMPLE), DONE, Generated(IMAGE))
    assert await last_image(stream.open()) is IMAGE
    assert stream.closed


async def test_a_stream_without_an_image_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="without an image"):
        await last_image(Stream(DONE).open())


async def test_an_event_that_the_consumer_does_not_know_is_an_error() -> None:
    stream = Stream(cast(Any, "progress"), Generated(IMAGE))
    with pytest.raises(AssertionError, match="progress"):
        await last_image(stream.open())
    assert stream.closed


def test_what_travels_between_processes_arrives_equal() -> None:
    costs = CostTable(
        {TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "fox"), 64, 64, 8): 0.1},
        {ModelKey(Stage.BASE, "fox"): BatchSize(4, 8)},
    )
    stats = replica_stats(gpu_seconds=2.0, costs=costs, positions={"a": 3})
    result = JobResult((b"png",), "{}", 1.0)
    job = Job("a", "key:1", "o", 1.0, JobState.SUCCEEDED, None, result)
    claim, claimed = IdempotencyClaim("s", "f", 7), ClaimResult("a", 7, is_owner=True)
    done = SegmentDone(SAMPLE, b"png", GpuTime(2.0), costs)
    task = ImageTask(id="a", spec=SPEC, timeout_s=9.0, caller="key:1")
    for value in (SAMPLE, Snapshot(SAMPLE), done, stats, IMAGE, task, job, claim, claimed):
        assert pickle.loads(pickle.dumps(value)) == value
