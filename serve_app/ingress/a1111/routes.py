"""The A1111 routes that make images: txt2img and img2img."""

import json
import time
from collections.abc import Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve_app.core.service.info import ModelInfo
from serve_app.core.service.job_errors import JobCancelled
from serve_app.core.service.job_events import ImageMade, JobDone
from serve_app.core.service.jobs import JobResult
from serve_app.ingress.a1111.list_routes import router as list_router
from serve_app.ingress.a1111.progress_routes import router as progress_router
from serve_app.ingress.a1111.remembered import chosen_checkpoint, model_by_choice
from serve_app.ingress.a1111.rerun import RERUN_FORMATS
from serve_app.ingress.a1111.response_schemas import A1111Error, ImagesResponse
from serve_app.ingress.a1111.responses import JobImages, images_response
from serve_app.ingress.a1111.schemas import (
    IMG2IMG,
    PREFIX,
    TXT2IMG,
    ImagesRequest,
    Img2ImgRequest,
    Txt2ImgRequest,
)
from serve_app.ingress.a1111.unserved import check_eta, check_served
from serve_app.ingress.door import route_name
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.lookup import find_model
from serve_app.ingress.openapi import GENERATION_ERRORS, error_responses
from serve_app.ingress.request_context import RequestContext
from serve_app.ingress.services import (
    ApiServices,
    IdempotencyKey,
    Services,
    completed,
    request_context,
)
from serve_app.ingress.strict_json import StrictRoute

_ERRORS = error_responses(*GENERATION_ERRORS, model=A1111Error)
_TXT2IMG, _IMG2IMG = RERUN_FORMATS

router = APIRouter(
    prefix=PREFIX,
    route_class=StrictRoute,
    tags=["A1111 API"],
    generate_unique_id_function=route_name,
)


@router.post(TXT2IMG.removeprefix(PREFIX), response_model=ImagesResponse, responses=_ERRORS)
async def txt2img(
    body: Txt2ImgRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from a prompt."""
    check_served(body)
    model, warnings = await _model_of(body, request, services)
    wanted = body.to_domain(model, services.info)
    job = await services.plan(wanted, [], _TXT2IMG, request.state, key)
    context = request_context(request, key, body, model.name)
    return await _run(body, job.with_warnings(*warnings), context, request, services)


@router.post(IMG2IMG.removeprefix(PREFIX), response_model=ImagesResponse, responses=_ERRORS)
async def img2img(
    body: Img2ImgRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from images and a prompt."""
    check_served(body)
    model, warnings = await _model_of(body, request, services)
    wanted = body.to_domain(model, services.info)
    job = await services.plan(wanted, body.input_files, _IMG2IMG, request.state, key)
    context = request_context(request, key, body, model.name + job.input_digests)
    return await _run(body, job.with_warnings(*warnings), context, request, services)


async def _model_of(
    body: ImagesRequest, request: Request, services: ApiServices
) -> tuple[ModelInfo, list[str]]:
    """Return the model of a request: its own, else the one that its caller has chosen.

    With what the caller should know of it. Raises `ModelNotFound` or `LedgerAway`.
    """
    if body.checkpoint is not None:
        return find_model(services.info, body.checkpoint), []
    return model_by_choice(await chosen_checkpoint(request, services), services.info)


async def _run(
    body: ImagesRequest,
    job: GenerationJob,
    context: RequestContext,
    request: Request,
    services: ApiServices,
) -> Response:
    """Run a job and return its images in the web UI's form.

    One that is interrupted gives the images that are done, as the web UI does, and raises
    `JobCancelled` if there are none.
    """
    check_eta(body, job.images[0].spec.sampler.solver)
    job = job.with_warnings(*_size_warnings(body, job))
    made: list[ImageMade] = []
    result: JobResult | None = None
    try:
        async with aclosing(services.stream(job, context, request)) as events:
            async for event in events:
                if isinstance(event, ImageMade):
                    made.append(event)
                elif isinstance(event, JobDone):
                    result = event.result
    except JobCancelled:
        if not made:
            raise
    if result is not None and job.cloud is not None:  # it may have been made before a change
        job = job.with_cloud_model(json.loads(result.meta)["model"])
    images = _interrupted(made, job) if result is None else _finished(result)
    response = await services.write(images_response, body, job, images)
    return completed(response, request, images.warnings)


def _finished(result: JobResult) -> JobImages:
    """Return all images of a job that has succeeded."""
    meta = json.loads(result.meta)
    seeds = meta["seeds"] or [None] * len(result.pngs)
    made = [
        ImageMade(number, png, seed)
        for number, (png, seed) in enumerate(zip(result.pngs, seeds, strict=True))
    ]
    return JobImages(made, meta["warnings"], result.created)


def _interrupted(made: Sequence[ImageMade], job: GenerationJob) -> JobImages:
    """Return the images of a job that were done when it was cancelled."""
    number, count = len(made), len(job.images)
    warning = f"interrupted: {number} of {count} images {'was' if number == 1 else 'were'} done"
    images = sorted(made, key=lambda image: image.number)
    return JobImages(images, [*job.warnings, warning], time.time())


def _size_warnings(body: ImagesRequest, job: GenerationJob) -> list[str]:
    """Return a sentence on a size that was fitted to what the model makes."""
    spec = job.images[0].spec
    size, wanted = (spec.width, spec.height), (body.width or spec.width, body.height or spec.height)
    if size == wanted:
        return []
    return ["the size {}x{} was fitted to {}x{}".format(*wanted, *size)]


router.routes.extend([*list_router.routes, *progress_router.routes])
