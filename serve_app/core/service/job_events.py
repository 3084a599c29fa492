"""Typed events of a job: what those see who wait for it, or watch it.

Whoever acts on them matches on the type and ends with `assert_never`, as with `events`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import assert_never

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import EngineFault
from serve_app.core.service.jobs import JobResult
from serve_app.core.service.outlook import Outlook


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The first event of a job, by whose id it can be fetched, watched and cancelled.

    It may come again: where another call with the same idempotency key worked at the job, and ended
    without a result, this call works at it anew.
    """

    id: str


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far an image of the job is; `number` counts its images from 0."""

    number: int
    outlook: Outlook


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """What an image may become: a small JPEG file."""

    number: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class StageDone:
    """An image has been through a stage."""

    number: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class ImageMade:
    """An image is done: its PNG file with its metadata, its seed if it has one, and warnings."""

    number: int
    png: bytes
    seed: int | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobDone:
    """The last event of every job that does not raise."""

    result: JobResult


ImageEvent = ImageProgress | ImagePreview | StageDone | ImageMade
JobEvent = JobStarted | ImageEvent | JobDone


async def last_result(events: AsyncGenerator[JobEvent, None]) -> JobResult:
    """Wait for the end of a job's stream and return its result; close the stream however it ends.

    Raises what the stream raises, and `EngineFault` if it ends without a result.
    """
    async with aclosing(events):
        async for event in events:
            match event:
                case JobDone(result):
                    return result
                case JobStarted() | ImageProgress() | ImagePreview() | StageDone() | ImageMade():
                    pass
                case _:
                    assert_never(event)
    raise EngineFault("the stream of events ended without a result")
