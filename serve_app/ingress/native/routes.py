"""Our own routes: /generate, /refine, /jobs/{id}, /licenses, /health, /livez.

Knows no Ray and no torch. Requests come in as schemas, become orders, and the desk fulfils them.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.spec import SEED_RANGE
from serve_app.core.service.info import HealthStatus, ServiceInfo
from serve_app.core.service.jobs import Job, JobResult
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import retry_after
from serve_app.ingress.generation import GenerationJob, check_refine, plan_generate, plan_refine
from serve_app.ingress.image_input import BaseImage, read_base64, read_image
from serve_app.ingress.job_service import JobService, RequestContext
from serve_app.ingress.native.schemas import (
    ErrorEnvelope,
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    JobResponse,
    LicensesResponse,
    RefineRequest,
    TermsAcceptance,
)
from serve_app.ingress.responses import images_response_body, prefers_png
from serve_app.ingress.strict_json import StrictRoute

_PICTURE_THREADS = 2  # of each kind: bounds memory, and leaves the event loop a core
_ERROR_DESCRIPTIONS = {
    400: "Not JSON, or a field that is missing, unknown or out of range",
    401: "No key, or a wrong one",
    403: "A host or an origin that is not on the list, or terms that were not accepted",
    404: "A name or an id that is not there",
    409: "The job was cancelled while this call waited for it",
    413: "A body over the limit",
    415: "A body of another type",
    422: "Refused: by a safety filter, for its size alone, or as the second use of a key",
    429: "This caller's allowance is used up; Retry-After says when there is more",
    500: "A fault inside the service",
    503: "The service can't make it now; Retry-After says when to ask again",
    504: "Not ready in the time allowed",
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="What is sent again under the same key is made once, and answered alike",
    ),
]


def error_responses(*statuses: int, model: Any = ErrorEnvelope) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description."""
    return {
        s: {"model": model, "description": _ERROR_DESCRIPTIONS[s]} for s in sorted({500, *statuses})
    }


GENERATION_ERRORS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504)
_PICTURE: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The pictures; one alone comes bare to who accepts image/png",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class RequestHandlers:
    """What the routes share: seeds are drawn and pictures read here, off the event loop."""

    def __init__(self, jobs: JobService, info: ServiceInfo) -> None:
        self.jobs = jobs
        self.info = info
        self._readers = ThreadPoolExecutor(_PICTURE_THREADS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(_PICTURE_THREADS, thread_name_prefix="answer")

    async def make(
        self, order: GenerationJob, asking: RequestContext, request: Request
    ) -> JobResult:
        """What the order gives. Raises the named errors of the domain."""
        request.state.watch.lap("validate")
        result = await self.jobs.run(order, asking)
        request.state.watch.lap("make")
        return result

    async def write(self, work: Callable[..., bytes], *args: Any) -> bytes:
        """The body that `work` gives, in a thread that waits for no picture to be read."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, partial(work, *args))

    async def read(
        self,
        files: Sequence[str | bytes],
        sizes: SizeRules,
        wanted: tuple[int, int] | None = None,
    ) -> list[BaseImage]:
        """The pictures in files, or in their base64, one after the other. Raises `InvalidImage`."""
        loop = asyncio.get_running_loop()

        def read_one(file: str | bytes, i: int) -> BaseImage:
            file = read_base64(file, i) if isinstance(file, str) else file
            return read_image(file, i, sizes, wanted)

        return [
            await loop.run_in_executor(self._readers, read_one, file, i)
            for i, file in enumerate(files)
        ]


def draw_seed() -> int:
    """A seed for who gave none."""
    return secrets.randbelow(SEED_RANGE[1] + 1)


def request_context(
    request: Request, key: str | None, body: BaseModel, images: Sequence[BaseImage] = ()
) -> RequestContext:
    """Who asks, and under which key. `images` are those that are no part of the body's text."""
    caller, route = request.state.caller, request.state.path
    if key is None:
        return RequestContext(caller, route)
    text = body.model_dump_json(exclude=set(body.model_extra or ()))
    text += "".join(image.digest for image in images)
    return RequestContext(caller, route, key, sha256(text.encode()).hexdigest())


def timed(request: Request) -> dict[str, str]:
    """The headers that tell where the time went, once the answer is written."""
    request.state.watch.lap("write")
    return {"Server-Timing": request.state.watch.header}


def routes(studio: RequestHandlers, conductor: Maker, version: str) -> APIRouter:
    """The routes, ready to be included."""
    router = APIRouter(route_class=StrictRoute, tags=["pictures"])
    desk, facts = studio.jobs, studio.info

    @router.post(
        "/generate",
        status_code=201,
        response_model=GenerateResponse,
        responses=_PICTURE | error_responses(*GENERATION_ERRORS),
    )
    async def generate(
        body: GenerateRequest, request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Pictures from a prompt."""
        order = plan_generate(body, facts, draw_seed())
        return await answered(order, request_context(request, key, body), request)

    @router.post(
        "/refine",
        status_code=201,
        response_model=GenerateResponse,
        responses=_PICTURE | error_responses(*GENERATION_ERRORS),
    )
    async def refine(body: RefineRequest, request: Request, key: IdempotencyKey = None) -> Response:
        """Pictures from pictures and a prompt."""
        _, texts = body.pictures
        model, *_ = check_refine(body, facts)
        await desk.check_terms(request.state.caller)
        images = await studio.read(texts, model.sizes)
        order = plan_refine(body, images, facts, draw_seed())
        return await answered(order, request_context(request, key, body), request)

    @router.get(
        "/jobs/{id}", response_model=JobResponse, responses=error_responses(401, 403, 404, 503)
    )
    async def look(id: str, request: Request) -> Response:
        """What became of a request, for ten minutes after it ended."""
        return await told(await desk.get(id, request.state.caller))

    @router.delete(
        "/jobs/{id}", response_model=JobResponse, responses=error_responses(401, 403, 404, 503)
    )
    async def cancel(id: str, request: Request) -> Response:
        """The request is cancelled, if it was still worked at."""
        return await told(await desk.cancel(id, request.state.caller))

    @router.get("/licenses", response_model=LicensesResponse, responses=error_responses(403))
    async def licenses() -> dict[str, Any]:
        """The terms of every model, which bind whoever asks for pictures."""
        return {
            "terms": facts.terms_digest,
            "required": facts.terms_required,
            "licenses": [
                {
                    "model": one.model,
                    "name": one.name,
                    "url": one.url,
                    "restrictions": list(one.restrictions),
                    "text": one.text,
                }
                for one in facts.licenses
            ],
        }

    @router.post(
        "/licenses", status_code=204, responses=error_responses(400, 401, 403, 413, 415, 503)
    )
    async def accept(body: TermsAcceptance, request: Request) -> Response:
        """The caller accepts the terms in force, by their digest."""
        await desk.accept_terms(request.state.caller, body.terms)
        return Response(status_code=204)

    @router.get(
        "/health",
        response_model=HealthResponse,
        responses=error_responses(403) | error_responses(503, model=HealthResponse),
    )
    async def health() -> Response:
        """Whether an image could be made now, and by whom."""
        now = await conductor.health()
        body = HealthResponse.model_construct(
            status=now.status,
            reason=now.reason,
            model=facts.default_model.name,
            models=list(facts.model_names),
            refiner=facts.refiner,
            loras=[lora.name for lora in facts.loras],
            device=facts.device,
            precision=facts.precision,
            replicas=now.replicas,
            owed_seconds=round(now.owed_seconds, 3),
            safety_filter=", ".join(facts.safety_filters) or "off",
            terms_required=facts.terms_required,
            warnings=[*facts.warnings, *now.shortfalls],
            version=version,
        ).model_dump(by_alias=True)
        if now.status is HealthStatus.READY:
            return JSONResponse(body)
        headers = {"Retry-After": str(retry_after(now.owed_seconds))}
        return JSONResponse(body, status_code=503, headers=headers)

    @router.get("/livez", responses=error_responses(403))
    async def livez() -> dict[str, str]:
        """That the process answers."""
        return {"status": "alive"}

    async def answered(order: GenerationJob, asking: RequestContext, request: Request) -> Response:
        result = await studio.make(order, asking, request)
        body, kind = result.pngs[0], "image/png"
        accepted = ",".join(request.headers.getlist("accept")) or "*/*"
        if len(result.pngs) > 1 or not prefers_png(accepted):
            body, kind = await studio.write(images_response_body, result), "application/json"
        return Response(body, 201, timed(request), kind)

    async def told(job: Job) -> Response:
        answer = await studio.write(images_response_body, job.result) if job.result else b"null"
        card = JSONResponse(
            {
                "id": job.id,
                "state": job.state,
                "createdAt": job.created,
                "error": {"code": job.error[0], "message": job.error[1]} if job.error else None,
            }
        ).body
        return Response(
            bytes(card)[:-1] + b',"answer":' + answer + b"}", media_type="application/json"
        )

    return router
