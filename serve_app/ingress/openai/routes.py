"""The OpenAI Images API on the same desk: any client of it works by changing its base URL.

Knows no Ray and no torch. What that API has and this service does not is refused with a sentence;
what makes no difference is passed over with a warning in the answer.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pybase64
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response

from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.jobs import JobResult
from serve_app.ingress.generation import GenerationJob, JobImage, plan_generate, plan_refine
from serve_app.ingress.image_input import BaseImage
from serve_app.ingress.job_service import RequestContext
from serve_app.ingress.lookup import not_found
from serve_app.ingress.native.routes import (
    GENERATION_ERRORS,
    IdempotencyKey,
    RequestHandlers,
    draw_seed,
    error_responses,
    request_context,
    timed,
)
from serve_app.ingress.native.schemas import GenerateRequest, RefineRequest
from serve_app.ingress.openai.schemas import (
    IGNORED_FIELDS,
    IMAGES,
    MAX_PROMPT_CHARS,
    ImageEditRequest,
    ImageGenerationRequest,
    ImagesRequest,
    ImagesResponse,
    Model,
    Models,
    OpenAIErrorEnvelope,
)
from serve_app.ingress.responses import converted
from serve_app.ingress.strict_json import StrictRoute

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
FORM = "multipart/form-data"
ALIASES = (  # what clients have hard-coded; all of them are our default model
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2.5",
    "gpt-image-2.6",
    "dall-e-2",
    "dall-e-3",
)
_COMPRESSION = 90  # quality of JPEG and WebP when nobody says
_FILES, _FIELDS = 16, 64
_FILE_FIELDS = ("image", "image[]")
_MOST_WARNINGS = 8
_FORM_BODY = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["image", "prompt"],
                "properties": {
                    "image": {
                        "description": "A PNG, JPEG or WebP; several as image[]",
                        "type": "string",
                        "format": "binary",
                    },
                    **ImageEditRequest.model_json_schema()["properties"],
                },
            }
        }
    },
}


def routes(studio: RequestHandlers) -> APIRouter:
    """The routes, ready to be included."""
    router = APIRouter(route_class=StrictRoute, tags=["OpenAI Images API"])
    desk, facts = studio.jobs, studio.info
    makes = error_responses(*GENERATION_ERRORS, model=OpenAIErrorEnvelope)

    @router.post(GENERATIONS, response_model=ImagesResponse, responses=makes)
    async def generations(
        body: ImageGenerationRequest, request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Pictures from a prompt."""
        order = _order_generation(body, facts)
        return await answered(body, order, request_context(request, key, body), request)

    @router.post(
        EDITS,
        response_model=ImagesResponse,
        responses=makes,
        openapi_extra={"requestBody": _FORM_BODY},
    )
    async def edits(request: Request, key: IdempotencyKey = None) -> Response:
        """Pictures from pictures and a prompt."""
        _check_charset(request.headers["content-type"])
        async with request.form(max_files=_FILES, max_fields=_FIELDS) as form:
            body = _read_fields(form)
            model = _check(body, facts)
            files = _files_of(form)
            read = [await file.read() for file in files[: body.n or 1]]
        await desk.check_terms(request.state.caller)
        wanted = body.wanted_size and model.sizes.scaled(*body.wanted_size)
        images = await studio.read(read, model.sizes, wanted)
        order = _order_edit(body, images, facts)
        if len(files) > len(read):
            told = f"only the first of {len(files)} pictures count: there is one for each of n"
            order = replace(order, warnings=(*order.warnings, told))
        return await answered(body, order, request_context(request, key, body, images), request)

    @router.get("/v1/models", responses=error_responses(401, 403, model=OpenAIErrorEnvelope))
    async def models() -> Models:
        """The models there are."""
        return Models(object="list", data=[_model(name, facts) for name in facts.model_names])

    @router.get(
        "/v1/models/{name}", responses=error_responses(401, 403, 404, model=OpenAIErrorEnvelope)
    )
    async def model(name: str) -> Model:
        """One model, also by a name that clients have hard-coded."""
        _model_of(name, facts)
        return _model(name, facts)

    async def answered(
        body: ImagesRequest, order: GenerationJob, asking: RequestContext, request: Request
    ) -> Response:
        result = await studio.make(order, asking, request)
        text = await studio.write(_answer_body, body, order, result)
        return Response(text, 200, timed(request), "application/json")

    return router


def _order_generation(body: ImageGenerationRequest, facts: ServiceInfo) -> GenerationJob:
    model = _check(body, facts)
    native = body.native(model)
    if body.wanted_size:
        native["width"], native["height"] = model.sizes.scaled(*body.wanted_size)
    request = GenerateRequest.model_validate(native)
    order = plan_generate(request, _facts_for(body, facts), draw_seed())
    return _with_warnings(order, body, GENERATIONS)


def _order_edit(
    body: ImageEditRequest, images: Sequence[BaseImage], facts: ServiceInfo
) -> GenerationJob:
    request = RefineRequest.model_validate(
        body.native(_check(body, facts)) | {"strength": body.strength}
    )
    order = plan_refine(request, images, _facts_for(body, facts), draw_seed())
    return _with_warnings(order, body, EDITS)


def _facts_for(body: ImagesRequest, facts: ServiceInfo) -> ServiceInfo:
    """What holds on these routes: longer prompts, one image when nobody says."""
    return replace(facts, max_prompt_chars=MAX_PROMPT_CHARS, default_image_count=body.n or 1)


def _with_warnings(order: GenerationJob, body: ImagesRequest, route: str) -> GenerationJob:
    """The order as one of this API, with a word on everything that was passed over or bent."""
    warnings = list(order.warnings)
    unknown = sorted(set(body.model_extra or {}) - IGNORED_FIELDS)[:_MOST_WARNINGS]
    warnings += [f"{name[:40]} is not known here and makes no difference" for name in unknown]
    spec = order.images[0].spec
    if body.wanted_size and body.wanted_size != (spec.width, spec.height):
        warnings.append(f"size {body.size} was fitted to {spec.width}x{spec.height}")
    return replace(order, route=route, rerun_request=_request_of, warnings=tuple(warnings))


def _request_of(order: GenerationJob, piece: JobImage) -> dict[str, Any]:
    """The fields of this API that make one image of the order again."""
    spec = piece.spec
    request = {
        "model": order.model,
        "prompt": piece.prompt,
        "n": 1,
        "size": f"{spec.width}x{spec.height}",
        "seed": spec.seed,
        "negative_prompt": spec.negative_prompt,
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "strength": spec.strength,
    }
    return {name: value for name, value in request.items() if value is not None}


def _check(body: ImagesRequest, facts: ServiceInfo) -> ModelInfo:
    """The model, when the service can do what is asked; raises a named error if not."""
    model = _model_of(body.model, facts)
    if body.stream:
        raise InvalidRequest(
            "stream", "can't be true: pictures come when they are done; leave it out"
        )
    return model


def _model_of(name: str | None, facts: ServiceInfo) -> ModelInfo:
    """A model of ours by its name; by no name, or one that clients have hard-coded, the default."""
    model = facts.default_model if name is None else facts.find_model(name)
    if model is None and name not in ALIASES:
        raise not_found("model", (*facts.model_names, *ALIASES))
    return model or facts.default_model


def _check_charset(content_type: str) -> None:
    """Returns when the fields of a form are UTF-8; raises `InvalidRequest` if they say they are in
    some other coding, of which Python knows a hundred and not all of them text."""
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequest("charset", "must be utf-8")


def _read_fields(form: FormData) -> ImageEditRequest:
    """The fields of a form. Raises what a JSON body with the same faults would."""
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "mask":
            raise InvalidRequest(
                "mask", "can't be used: there is no inpainting; leave it out to change all"
            )
        if name in _FILE_FIELDS:
            continue
        if not isinstance(value, str) or name in fields:
            raise InvalidRequest(name, "must be one field of text")
        if value or name == "prompt":
            fields[name] = value
    try:
        return ImageEditRequest.model_validate_strings(fields)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from None


def _files_of(form: FormData) -> list[UploadFile]:
    files = [value for name in _FILE_FIELDS for value in form.getlist(name)]
    if not files:
        raise InvalidRequest("image", "is required: a file, or several as image[]")
    if not all(isinstance(file, UploadFile) for file in files):
        raise InvalidRequest("image", "must be a file")
    if len(files) > IMAGES:
        raise InvalidRequest("image", f"must be at most {IMAGES} files, got {len(files)}")
    return [file for file in files if isinstance(file, UploadFile)]


def _model(name: str, facts: ServiceInfo) -> Model:
    ours = _model_of(name, facts).name
    terms = next((one.name for one in facts.licenses if one.model == ours), "unknown")
    return Model(id=name, object="model", created=0, owned_by="aura-serve", license=terms)


def _answer_body(body: ImagesRequest, order: GenerationJob, result: JobResult) -> bytes:
    """OpenAI's answer; in a thread, since it may encode pictures anew."""
    files: list[bytes] = list(result.pngs)
    if body.format != "png":
        quality = _COMPRESSION if body.output_compression is None else body.output_compression
        files = [converted(png, body.format, quality) for png in files]
    spec, meta = order.images[0].spec, json.loads(result.meta)
    rest: dict[str, Any] = {
        "created": int(result.created),
        "size": f"{spec.width}x{spec.height}",
        "quality": body.quality or "auto",
        "output_format": body.format,
        "background": "opaque",
        "warnings": meta["warnings"],
    }
    data = b",".join(
        b'{"b64_json":"%b","seed":%d}' % (pybase64.b64encode(file), seed)
        for file, seed in zip(files, meta["seeds"], strict=True)
    )
    return b'{"data":[' + data + b"]," + bytes(JSONResponse(rest).body)[1:]
