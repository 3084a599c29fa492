"""The events of a job, read as fast as they come, slowly, or not at all."""

import asyncio

from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import (
    Generated,
    GeneratedImage,
    JobEvent,
    JobImageEvent,
    JobStarted,
    Snapshot,
)
from serve_app.ingress.job_feed import JobFeed

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SCHEDULE = make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0)
STARTED = JobStarted("a")


def snapshot(number: int, step: int) -> JobImageEvent:
    sample: Sample[float] = new_sample(f"{number}-{step}", SPEC, SCHEDULE, Stage.BASE)
    return JobImageEvent(number, Snapshot(sample))


def generated(number: int) -> JobImageEvent:
    return JobImageEvent(number, Generated(GeneratedImage(b"png", ())))


async def test_a_quick_reader_gets_every_event_in_order() -> None:
    feed, read = JobFeed(), list[JobEvent]()
    arrived = asyncio.Semaphore(0)

    async def read_all() -> None:
        async for event in feed.read():
            read.append(event)
            arrived.release()

    reader = asyncio.create_task(read_all())
    events: list[JobEvent] = [STARTED, snapshot(0, 1), snapshot(0, 2), generated(0)]
    for event in events:
        feed.put(event)
        await arrived.acquire()
    feed.close()
    await reader
    assert read == events


async def test_a_slow_reader_gets_the_newest_event_of_each_type_and_image() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    for step in range(1000):
        feed.put(snapshot(0, step))
        feed.put(snapshot(1, step))
    feed.put(generated(1))
    feed.close()
    newest = [STARTED, snapshot(0, 999), snapshot(1, 999), generated(1)]
    assert [event async for event in feed.read()] == newest


async def test_a_feed_whose_reader_has_left_keeps_nothing() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    reading = feed.read()
    assert await anext(reading) == STARTED
    feed.put(snapshot(0, 1))
    await reading.aclose()
    feed.put(snapshot(0, 2))
    assert [event async for event in feed.read()] == []
