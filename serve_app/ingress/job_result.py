"""A job's images, made together and put into one result with their metadata."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from serve_app.core.caller import Caller
from serve_app.core.service.events import GeneratedImage, ImageEvent, JobImageEvent, last_image
from serve_app.core.service.jobs import Job, JobResult
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.contracts import Maker
from serve_app.ingress.generation_job import GenerationJob


async def make_result(
    maker: Maker,
    job: Job,
    tasks: Sequence[ImageTask],
    generation: GenerationJob,
    publish: Callable[[JobImageEvent], None],
) -> JobResult:
    """Return a job's images; the first failure cancels the others and is raised.

    `tasks` are its `image_tasks`, which the maker has admitted. `publish` is called with every
    event of every image.
    """
    started = time.perf_counter()
    made = await _make_images(maker, tasks, publish)
    pngs, warnings = [], dict.fromkeys(generation.warnings)
    for image, generated in zip(generation.images, made, strict=True):
        warnings |= dict.fromkeys(generated.warnings)
        profiles = {str(stage): name for stage, name in generated.profiles}
        pngs.append(generation.with_metadata(image, generated.png, profiles))
    spec = generation.images[0].spec
    meta = {
        "model": generation.model,
        "durationMs": round((time.perf_counter() - started) * 1000),
        "seeds": [image.spec.seed for image in generation.images],
        "width": spec.width,
        "height": spec.height,
        "steps": spec.steps,
        "guidanceScale": spec.guidance,
        "sampler": spec.sampler,
        "refined": generation.refined,
        "jobId": job.id,
        "warnings": list(warnings),
    }
    return JobResult(tuple(pngs), json.dumps(meta), job.created)


async def _make_images(
    maker: Maker, tasks: Sequence[ImageTask], publish: Callable[[JobImageEvent], None]
) -> Sequence[GeneratedImage]:
    def observe(number: int, event: ImageEvent) -> None:
        publish(JobImageEvent(number, event))

    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(last_image(maker.run(task), partial(observe, number)))
                for number, task in enumerate(tasks)
            ]
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return [task.result() for task in running]


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
