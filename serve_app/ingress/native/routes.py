"""The native routes: /generate, /refine, /jobs/{id}, /licenses, /health, /livez."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.diffusion.extensions import LORA
from serve_app.core.service.info import HealthStatus
from serve_app.core.service.job_events import JobStarted
from serve_app.ingress.accept import JSON, PNG, negotiate, prefers_async
from serve_app.ingress.door import route_name
from serve_app.ingress.generation_job import RerunFormat
from serve_app.ingress.native.event_stream import STREAM_RESPONSES, event_stream
from serve_app.ingress.native.job_routes import location_of, submitted
from serve_app.ingress.native.job_routes import router as job_router
from serve_app.ingress.native.link_routes import router as link_router
from serve_app.ingress.native.rerun import GENERATE, REFINE
from serve_app.ingress.native.response_schemas import (
    ErrorEnvelope,
    GenerateResponse,
    HealthResponse,
    JobResponse,
    LicensesResponse,
    Optimizations,
)
from serve_app.ingress.native.schemas import (
    GenerateRequest,
    RefineRequest,
    TermsAcceptance,
)
from serve_app.ingress.openapi import GENERATION_ERRORS, error_responses
from serve_app.ingress.responses import ImagesJSONResponse, add_warnings, images_content
from serve_app.ingress.services import (
    ApiServices,
    IdempotencyKey,
    Services,
    completed,
    request_context,
)
from serve_app.ingress.sse import EVENT_STREAM
from serve_app.ingress.strict_json import StrictRoute

_RENAMED_TERMS = "terms is now called termsDigest; the next release drops the old name"
_IMAGES: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The images; one image, with imageCount 1 or absent, is sent bare if Accept "
        "prefers image/png",
        "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_SUBMITTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobResponse,
        "description": "The job, if Prefer: respond-async; Location says where to ask for it",
    }
}
_GENERATION_RESPONSES = (
    STREAM_RESPONSES
    | _IMAGES
    | _SUBMITTED
    | error_responses(*GENERATION_ERRORS, model=ErrorEnvelope)
)
_TERMS_RESPONSES = error_responses(400, 401, 403, 413, 415, 503, model=ErrorEnvelope)
_LICENSES_RESPONSES = error_responses(403, 406, model=ErrorEnvelope)
_FORBIDDEN_RESPONSES = error_responses(403, model=ErrorEnvelope)


router = APIRouter(route_class=StrictRoute, tags=["images"], generate_unique_id_function=route_name)


@router.post(
    "/generate", status_code=201, response_model=GenerateResponse, responses=_GENERATION_RESPONSES
)
async def generate(
    body: GenerateRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from a prompt."""
    return await _make_images(body, GENERATE, request, services, key)


@router.post(
    "/refine", status_code=201, response_model=GenerateResponse, responses=_GENERATION_RESPONSES
)
async def refine(
    body: RefineRequest, request: Request, services: Services, key: IdempotencyKey = None
) -> Response:
    """Make images from base images and a prompt."""
    return await _make_images(body, REFINE, request, services, key)


@router.get("/licenses", response_model=LicensesResponse, responses=_LICENSES_RESPONSES)
async def list_licenses(services: Services) -> dict[str, Any]:
    """Return the terms of every model, which bind everyone who makes images with them."""
    return {
        "termsDigest": services.info.terms_digest,
        "required": services.info.terms_required,
        "licenses": [
            {
                "model": license.model,
                "name": license.name,
                "url": license.url,
                "restrictions": list(license.restrictions),
                "text": license.text,
            }
            for license in services.info.licenses
        ],
    }


@router.post("/licenses", status_code=204, responses=_TERMS_RESPONSES)
async def accept_terms(body: TermsAcceptance, request: Request, services: Services) -> Response:
    """Accept the terms in force, by their digest."""
    await services.jobs.terms.accept(request.state.caller, body.digest)
    warnings = [_RENAMED_TERMS] if "terms" in body.model_fields_set else []
    return add_warnings(Response(status_code=204), warnings)


@router.get(
    "/health",
    response_model=HealthResponse,
    responses=_FORBIDDEN_RESPONSES | error_responses(503, model=HealthResponse),
)
async def health(services: Services) -> Response:
    """Return whether an image could be made now, and by which replicas."""
    info = services.info
    health, ledger = await asyncio.gather(
        services.conductor.health(), services.jobs.ledger_health()
    )
    health = health.with_ledger(ledger)
    default = info.default_model
    notices = info.warnings if default.cloud is None else ()
    body = HealthResponse.model_construct(
        status=health.status,
        reason=health.reason,
        model=default.name,
        models=list(info.model_names),
        cloud_models=[model.name for model in info.models if model.cloud is not None],
        refiner=info.refiner,
        loras=[lora.name for lora in info.extensions_of(LORA)],
        device=info.device if default.cloud is None else "cloud",
        precision=info.precision,
        optimizations=Optimizations(
            scheduler=default.cloud.name if default.cloud else default.defaults.sampler
        ),
        replicas=health.replicas,
        owed_seconds=round(health.owed_seconds, 3),
        safety_filters=list(info.safety_filters),
        terms_required=info.terms_required,
        warnings=[
            *filter(None, (*notices, info.cloud_notice)),
            *default.sampler_warnings,
            *health.shortfalls,
            *health.notices,
        ],
        version=services.version,
    ).model_dump(by_alias=True)
    if health.status in (HealthStatus.READY, HealthStatus.DEGRADED):
        return JSONResponse(body)
    headers = {"Retry-After": str(bounded_retry(health.owed_seconds))}
    return JSONResponse(body, status_code=503, headers=headers)


@router.get("/livez", responses=_FORBIDDEN_RESPONSES)
async def livez() -> dict[str, str]:
    """Return at once: the process is alive."""
    return {"status": "alive"}


router.routes.extend([*job_router.routes, *link_router.routes])


async def _make_images(
    body: GenerateRequest | RefineRequest,
    rerun: RerunFormat,
    request: Request,
    services: ApiServices,
    key: str | None,
) -> Response:
    """Run the job of a request and return its images, as JSON or as one bare PNG."""
    files = body.input_files
    media_type = EVENT_STREAM if body.stream else _media_type(body, len(files), request)
    if media_type == PNG and body.image_count is None:
        body = body.model_copy(update={"image_count": 1})
    services.check_webhook(body.webhook)
    generation = body.to_domain(services.info)
    job = await services.plan(generation, files, rerun, request.state, key)
    views = media_type == EVENT_STREAM
    is_detached = not views and prefers_async(request)
    context = request_context(
        request,
        key,
        body,
        job.input_digests,
        views=views,
        is_detached=is_detached,
        webhook=body.webhook,
    )
    if views or is_detached:
        events = services.stream(job, context, request)
        started = await anext(events)  # what refuses the job has a status of its own
        assert isinstance(started, JobStarted)
        if views:
            watched = event_stream(started.id, events, request, services)
            watched.headers["Location"] = location_of(started.id, request)  # before any event
            return watched
        await events.aclose()
        return await submitted(started.id, request, services)
    result = await services.run(job, context, request)
    if media_type == PNG:
        response = Response(result.pngs[0], 201, media_type=PNG)
    else:
        response = await services.write(ImagesJSONResponse, images_content(result), 201)
    return completed(response, request, json.loads(result.meta)["warnings"])


def _media_type(body: GenerateRequest | RefineRequest, files: int, request: Request) -> str:
    """Return the media type that a request is answered with. Raises `NotAcceptable`."""
    requested = max(body.image_count or 1, files)
    remedy = f"{PNG} holds one image, and this request asks for {requested}"
    return negotiate(
        request,
        (JSON, PNG, EVENT_STREAM) if requested == 1 else (JSON, EVENT_STREAM),
        remedy=remedy if requested > 1 else "",
    )
