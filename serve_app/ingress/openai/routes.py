"""The OpenAI Images API: a client of OpenAI's works after changing its base URL.

A field that has no effect here gives a warning by name, an unknown one too. Refused is only what
would deceive the caller if it were ignored.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from serve_app.core.errors import InvalidRequest, model_not_found
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.jobs import JobResult
from serve_app.ingress.door import route_name
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.openai import form
from serve_app.ingress.openai.event_stream import EDIT, GENERATION, event_stream, stream_responses
from serve_app.ingress.openai.rerun import rerun_format
from serve_app.ingress.openai.response_schemas import (
    ImagesResponse,
    Model,
    Models,
    OpenAIErrorEnvelope,
)
from serve_app.ingress.openai.schemas import (
    EDITS,
    GENERATIONS,
    ImageGenerationRequest,
    ImagesRequest,
)
from serve_app.ingress.openai.unserved import unserved_warnings
from serve_app.ingress.openapi import GENERATION_ERRORS, error_responses
from serve_app.ingress.request_context import RequestContext
from serve_app.ingress.responses import DataUri, ImagesJSONResponse
from serve_app.ingress.services import (
    ApiServices,
    IdempotencyKey,
    Services,
    completed,
    request_context,
)
from serve_app.ingress.strict_json import StrictRoute

PREFIX = "/v1"
ALIASES = (  # names that clients have hard-coded; all of them mean our default model
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2.5",
    "gpt-image-2.6",
    "dall-e-2",
    "dall-e-3",
)
_OPENAI_NAME = re.compile(r"(?:chatgpt-image|gpt-image|dall-e)[a-z0-9.-]{0,40}")
_ERRORS = error_responses(*GENERATION_ERRORS, model=OpenAIErrorEnvelope)
_LIST_RESPONSES = error_responses(401, 403, 406, model=OpenAIErrorEnvelope)
_MODEL_RESPONSES = error_responses(401, 403, 404, 406, model=OpenAIErrorEnvelope)

router = APIRouter(
    prefix=PREFIX,
    route_class=StrictRoute,
    tags=["OpenAI Images API"],
    generate_unique_id_function=route_name,
)


@router.post(
    GENERATIONS.removeprefix(PREFIX),
    response_model=ImagesResponse,
    responses=stream_responses(GENERATION) | _ERRORS,
)
async def create_images(
    body: ImageGenerationRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from a prompt."""
    model = _check(body, services.info)
    rerun = rerun_format(GENERATIONS, body)
    job = await services.plan(body.to_domain(model), [], rerun, request.state, key)
    job = job.with_warnings(*_warnings(body, job, services.info))
    context = request_context(request, key, body, views=bool(body.stream))
    return await _run(GENERATION, body, job, context, request, services)


@router.post(
    EDITS.removeprefix(PREFIX),
    response_model=ImagesResponse,
    responses=stream_responses(EDIT) | _ERRORS,
    openapi_extra={"requestBody": form.DESCRIPTION},
)
async def edit_images(request: Request, services: Services, key: IdempotencyKey = None) -> Response:
    """Make images from images and a prompt."""
    async with form.read_form(request) as edit:
        body = edit.fields
        model = _check(body, services.info)
        files = await edit.input_files(body.n or 1)
    rerun = rerun_format(EDITS, body)
    job = await services.plan(body.to_domain(model), files, rerun, request.state, key)
    job = job.with_warnings(*_warnings(body, job, services.info))
    if len(edit.images) > len(files):
        job = job.with_warnings(_passed_over(len(edit.images), len(files)))
    context = request_context(
        request, key, body, uploads=job.input_digests, views=bool(body.stream)
    )
    return await _run(EDIT, body, job, context, request, services)


@router.get("/models", responses=_LIST_RESPONSES)
async def list_models(services: Services) -> Models:
    """List the models."""
    info = services.info
    return Models(object="list", data=[_model_entry(name, info) for name in info.model_names])


@router.get("/models/{name:path}", responses=_MODEL_RESPONSES)
async def get_model(
    name: Annotated[str, Path(description="Name of a model", examples=[ALIASES[0]])],
    services: Services,
) -> Model:
    """Return one model, also by a name that clients have hard-coded."""
    return _model_entry(name, services.info)


async def _run(
    kind: str,
    body: ImagesRequest,
    job: GenerationJob,
    context: RequestContext,
    request: Request,
    services: ApiServices,
) -> Response:
    """Run a job and return its images in OpenAI's form, or its events."""
    if body.stream:
        events = services.stream(job, context, request)
        await anext(events)  # what refuses the job has a status of its own
        return event_stream(kind, body, job, events, request, services)
    result = await services.run(job, context, request)
    links = None
    if body.wants_url:
        links = await services.addresses(result, request, body.format, body.quality_of_file)
    response = await services.write(_images_response, body, result, links)
    return completed(response, request, json.loads(result.meta)["warnings"])


def _images_response(
    body: ImagesRequest, result: JobResult, links: Sequence[str] | None
) -> Response:
    """Return OpenAI's response, with the images in the requested format, or their links.

    Without `links` they are in base64; without any of them, in data URIs.
    """
    meta = json.loads(result.meta)
    seeds = meta["seeds"] or [None] * len(result.pngs)
    if links:
        images: list[dict[str, Any]] = [{"url": link} for link in links]
    else:
        files = [body.encoded(png) for png in result.pngs]
        images = [
            {"b64_json": file} if links is None else {"url": DataUri(f"image/{body.format}", file)}
            for file in files
        ]
    content = {
        "created": int(result.created),
        "size": f"{meta['width']}x{meta['height']}",
        "quality": body.quality or "auto",
        "output_format": body.format,
        "background": "opaque",
        "warnings": meta["warnings"],
        "data": [{**image, "seed": seed} for image, seed in zip(images, seeds, strict=True)],
    }
    return ImagesJSONResponse(content)


def _warnings(body: ImagesRequest, job: GenerationJob, info: ServiceInfo) -> list[str]:
    """Return a sentence on each field without effect, and on a size that was fitted."""
    warnings = unserved_warnings(body)
    spec = job.images[0].spec
    name = body.model
    if name and name not in ALIASES and info.find_model(name) is None:
        warnings.append(f"there is no model {name}: {job.model} was used")
    if job.cloud is None and body.pixels and body.pixels != (spec.width, spec.height):
        warnings.append(f"size {body.size} was fitted to {spec.width}x{spec.height}")
    return warnings


def _passed_over(sent: int, used: int) -> str:
    """Return the warning that the last of the sent images were passed over."""
    first = f"image {used}" if sent == used + 1 else f"images {used} to {sent - 1}"
    verb = "is" if sent == used + 1 else "are"
    return (
        f"{first} of {sent}, counted from 0, {verb} passed over: each of the n images is made from "
        f"one base image, and n is {used}"
    )


def _check(body: ImagesRequest, info: ServiceInfo) -> ModelInfo:
    """Return the model, if the service can do what the request says.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = _find_model(body.model, info)
    if body.stream and body.response_format == "url":
        raise InvalidRequest(
            "response_format", "can't be url in a stream", remedy="Leave it out: events have base64"
        )
    return model


def _find_model(name: str | None, info: ServiceInfo) -> ModelInfo:
    """Return the model of a name; the default for no name, or for one that looks like OpenAI's."""
    model = info.default_model if name is None else info.find_model(name)
    if model is None and not _OPENAI_NAME.fullmatch(name or ""):
        raise model_not_found("model", (*info.model_names, *ALIASES))
    return model or info.default_model


def _model_entry(name: str, info: ServiceInfo) -> Model:
    model = _find_model(name, info).name
    names = (license.name for license in info.licenses if license.model == model)
    return Model(
        id=name,
        object="model",
        created=0,
        owned_by="aura-serve",
        license=next(names, "unknown"),
    )
