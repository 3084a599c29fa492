"""The OpenAI Images API: a client of OpenAI's works after changing its base URL.

A request for something that this service lacks is refused with a sentence. OpenAI's fields that
change no image here are ignored silently; unknown fields are ignored with a warning.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from serve_app.core.errors import InvalidRequest, model_not_found
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.jobs import JobResult
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.job_service import RequestContext
from serve_app.ingress.openai.response_schemas import (
    ImagesResponse,
    Model,
    Models,
    OpenAIErrorEnvelope,
)
from serve_app.ingress.openai.schemas import (
    EDITS,
    GENERATIONS,
    IGNORED_FIELDS,
    MAX_IMAGES,
    ImageEditRequest,
    ImageGenerationRequest,
    ImagesRequest,
    rerun_format,
)
from serve_app.ingress.openapi import GENERATION_ERRORS, error_responses
from serve_app.ingress.responses import ImagesJSONResponse, converted
from serve_app.ingress.services import (
    ApiServices,
    IdempotencyKey,
    Services,
    completed,
    request_context,
)
from serve_app.ingress.strict_json import StrictRoute

PREFIX = "/v1"
FORM = "multipart/form-data"
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
_DEFAULT_QUALITY = 90  # of JPEG and WebP
_MAX_FILES, _MAX_FIELDS = 16, 64
_FILE_FIELDS = ("image", "image[]")
_MAX_WARNINGS = 8  # about unknown fields
_FORM_BODY = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["image", "prompt"],
                "properties": {
                    "image": {
                        "description": "A PNG, JPEG or WebP file; several files as `image[]`.",
                        "type": "string",
                        "format": "binary",
                    },
                    **ImageEditRequest.model_json_schema()["properties"],
                },
            }
        }
    },
}
_GENERATION_RESPONSES = error_responses(*GENERATION_ERRORS, model=OpenAIErrorEnvelope)
_LIST_RESPONSES = error_responses(401, 403, 406, model=OpenAIErrorEnvelope)
_MODEL_RESPONSES = error_responses(401, 403, 404, 406, model=OpenAIErrorEnvelope)

router = APIRouter(prefix=PREFIX, route_class=StrictRoute, tags=["OpenAI Images API"])


@router.post(
    GENERATIONS.removeprefix(PREFIX), response_model=ImagesResponse, responses=_GENERATION_RESPONSES
)
async def create_images(
    body: ImageGenerationRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from a prompt."""
    model = _check(body, services.info)
    rerun = rerun_format(GENERATIONS, body)
    job = await services.plan(body.to_domain(model), [], rerun, request.state.caller)
    job = job.with_warnings(*_warnings(body, job))
    return await _run(body, job, request_context(request, key, body), request, services)


@router.post(
    EDITS.removeprefix(PREFIX),
    response_model=ImagesResponse,
    responses=_GENERATION_RESPONSES,
    openapi_extra={"requestBody": _FORM_BODY},
)
async def edit_images(request: Request, services: Services, key: IdempotencyKey = None) -> Response:
    """Make images from images and a prompt."""
    _check_charset(request.headers["content-type"])
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS) as form:
        body = _read_fields(form)
        model = _check(body, services.info)
        uploads = _uploads(form)
        files = [InputFiles(await upload.read()) for upload in uploads[: body.n or 1]]
    rerun = rerun_format(EDITS, body)
    job = await services.plan(body.to_domain(model), files, rerun, request.state.caller)
    job = job.with_warnings(*_warnings(body, job))
    if len(uploads) > len(files):
        job = job.with_warnings(
            f"base images used: the first {len(files)} of {len(uploads)}, one for each of n"
        )
    context = request_context(request, key, body, uploads=job.input_digests)
    return await _run(body, job, context, request, services)


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
    body: ImagesRequest,
    job: GenerationJob,
    context: RequestContext,
    request: Request,
    services: ApiServices,
) -> Response:
    """Run a job and return its images in OpenAI's form."""
    result = await services.run(job, context, request)
    response = await services.write(_images_response, body, job, result)
    return completed(response, request, result)


def _images_response(body: ImagesRequest, job: GenerationJob, result: JobResult) -> Response:
    """Return OpenAI's response, with the images in the requested format."""
    files: Sequence[bytes] = result.pngs
    if body.format != "png":
        quality = body.output_compression
        quality = _DEFAULT_QUALITY if quality is None else quality
        files = [converted(png, body.format, quality) for png in result.pngs]
    spec, meta = job.images[0].spec, json.loads(result.meta)
    content = {
        "created": int(result.created),
        "size": f"{spec.width}x{spec.height}",
        "quality": body.quality or "auto",
        "output_format": body.format,
        "background": "opaque",
        "warnings": meta["warnings"],
        "data": [
            {"b64_json": file, "seed": seed}
            for file, seed in zip(files, meta["seeds"], strict=True)
        ],
    }
    return ImagesJSONResponse(content)


def _warnings(body: ImagesRequest, job: GenerationJob) -> list[str]:
    """Return a sentence on each of up to eight unknown fields, and on a size that was fitted."""
    unknown = sorted(set(body.model_extra or {}) - IGNORED_FIELDS)[:_MAX_WARNINGS]
    warnings = [f"{name[:40]} is not a field of this API and is ignored" for name in unknown]
    spec = job.images[0].spec
    if body.pixels and body.pixels != (spec.width, spec.height):
        warnings.append(f"size {body.size} was fitted to {spec.width}x{spec.height}")
    return warnings


def _check(body: ImagesRequest, info: ServiceInfo) -> ModelInfo:
    """Return the model, if the service can do what the request says.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = _find_model(body.model, info)
    if body.stream:
        raise InvalidRequest(
            "stream", "is not supported", remedy="Leave it out, or set it to false"
        )
    return model


def _find_model(name: str | None, info: ServiceInfo) -> ModelInfo:
    """Return the model of a name; the default for no name, or for a hard-coded one."""
    model = info.default_model if name is None else info.find_model(name)
    if model is None and name not in ALIASES:
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


def _check_charset(content_type: str) -> None:
    """Return if the fields of a form are UTF-8.

    Raises `InvalidRequest` for another encoding: Python knows a hundred, and not all are text.
    """
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequest("charset", "must be utf-8")


def _read_fields(form: FormData) -> ImageEditRequest:
    """Return the fields of a form; raise what a JSON body with the same faults would."""
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "mask":
            raise InvalidRequest(
                "mask", "is not supported", remedy="Omit it to edit the whole image"
            )
        if name in _FILE_FIELDS:
            continue
        if not isinstance(value, str) or name in fields:
            raise InvalidRequest(name, "must be a single text field")
        if value or name == "prompt":
            fields[name] = value
    try:
        return ImageEditRequest.model_validate_strings(fields)
    except ValidationError as error:
        located: list[Any] = [{**e, "loc": ("body", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(located) from None


def _uploads(form: FormData) -> list[UploadFile]:
    """Return the files of a form. Raises `InvalidRequest` for none, too many, or text."""
    values = [value for name in _FILE_FIELDS for value in form.getlist(name)]
    uploads = [value for value in values if isinstance(value, UploadFile)]
    if not values:
        raise InvalidRequest("image", "is required: a file, or several as image[]")
    if len(uploads) < len(values):
        raise InvalidRequest("image", "must be a file")
    if len(uploads) > MAX_IMAGES:
        raise InvalidRequest("image", f"must be at most {MAX_IMAGES} files, got {len(uploads)}")
    return uploads
