"""A job's images, made together and put into one result with their metadata."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from serve_app.core.caller import Caller
from serve_app.core.service import events
from serve_app.core.service.events import last_image
from serve_app.core.service.job_events import (
    ImageEvent,
    ImageMade,
    ImagePreview,
    ImageProgress,
    StageDone,
)
from serve_app.core.service.jobs import Job, JobResult
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.containers.png import size_of
from serve_app.ingress.contracts import Maker
from serve_app.ingress.generation_job import GenerationJob


async def make_result(
    maker: Maker,
    job: Job,
    tasks: Sequence[ImageTask],
    generation: GenerationJob,
    publish: Callable[[ImageEvent], None],
) -> JobResult:
    """Return a job's images; the first failure cancels the others and is raised.

    `tasks` are its `image_tasks`, which the maker has admitted. `publish` is called with every
    event of every image.
    """
    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(_make_image(maker, task, number, generation, publish))
                for number, task in enumerate(tasks)
            ]
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    pngs, warnings = [], dict.fromkeys(generation.warnings)
    for task in running:
        png, own_warnings = task.result()
        pngs.append(png)
        warnings |= dict.fromkeys(own_warnings)
    spec = generation.images[0].spec
    is_local = generation.cloud is None
    width, height = (spec.width, spec.height) if is_local else size_of(pngs[0])
    meta = {
        "model": generation.model,
        "durationMs": round((time.perf_counter() - started) * 1000),
        "seeds": [image.spec.seed for image in generation.images] if is_local else None,
        "width": width,
        "height": height,
        "steps": spec.steps if is_local else None,
        "guidanceScale": spec.guidance if is_local else None,
        "sampler": spec.sampler if is_local else None,
        "refined": generation.refined,
        "jobId": job.id,
        "warnings": list(warnings),
    }
    return JobResult(tuple(pngs), json.dumps(meta), job.created)


async def _make_image(
    maker: Maker,
    task: ImageTask,
    number: int,
    generation: GenerationJob,
    publish: Callable[[ImageEvent], None],
) -> tuple[bytes, tuple[str, ...]]:
    """Return the PNG of one image, with its metadata, and its warnings."""
    observe = partial(_publish, maker, task, number, publish)
    made = await last_image(maker.run(task), observe)
    profiles = {str(stage): name for stage, name in made.profiles}
    image = generation.images[number]
    png = generation.with_metadata(image, made.png, profiles)
    warnings = tuple(dict.fromkeys((*generation.warnings, *made.warnings)))
    seed = image.spec.seed if generation.cloud is None else None
    publish(ImageMade(number, png, seed, warnings))
    return png, made.warnings


def _publish(
    maker: Maker,
    task: ImageTask,
    number: int,
    publish: Callable[[ImageEvent], None],
    event: events.ImageEvent,
) -> None:
    """Publish what an event of a maker means for those who wait for its image."""
    match event:
        case events.Accepted() | events.Queued() | events.Progress():
            publish_progress(maker, task, number, publish)
        case events.Preview(_, jpeg):
            publish(ImagePreview(number, jpeg))
        case events.SegmentDone(sample):
            publish(StageDone(number, sample.stage))
        case events.Snapshot() | events.Generated():
            pass
        case _:
            assert_never(event)


def publish_progress(
    maker: Maker, task: ImageTask, number: int, publish: Callable[[ImageEvent], None]
) -> None:
    """Publish how far an image is, if the maker still has it."""
    if outlook := maker.outlook(task.id):
        publish(ImageProgress(number, outlook))


def image_tasks(
    job: Job, caller: Caller, generation: GenerationJob, arrived: float | None
) -> list[ImageTask]:
    """Return one task for each image; the number at the end of its id is the image's."""
    return [
        ImageTask(
            id=f"{job.id}-{number}",
            spec=image.spec,
            inputs=image.inputs,
            timeout_s=generation.timeout_s,
            caller=caller,
            arrived=arrived,
            has_drawn_seed=generation.has_drawn_seed,
        )
        for number, image in enumerate(generation.images)
    ]
