"""/generate, /refine, /health, /livez: requests in, the conductor asked, answers out.

Knows no Ray and no torch: the conductor is anything that keeps the contract.
"""

import asyncio
import base64
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from serve_app.core.errors import AuraError
from serve_app.core.facts import Condition, Health, ServiceFacts
from serve_app.core.spec import SEED, ImageSpec
from serve_app.ingress.errors import answer, answer_error, retry_after
from serve_app.ingress.images import BaseImage, read_image
from serve_app.ingress.middleware import TOO_LARGE, surround
from serve_app.ingress.orders import Order, order_generate, order_refine
from serve_app.ingress.schemas import (
    Answer,
    ErrorAnswer,
    GenerateRequest,
    HealthAnswer,
    Meta,
    RefineRequest,
    near_field,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "Not JSON, or a field that is missing, unknown or out of range",
        404: "A model that is not there",
        413: "A body over the limit",
        415: "A body that is not application/json",
        500: "A fault inside the service",
        503: "The service can't make it now; Retry-After says when to ask again",
        504: "Not ready in the time allowed",
    }.items()
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The pictures",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Conductor(Protocol):
    """Who makes images."""

    async def make(
        self, id: str, spec: ImageSpec, source: bytes | None, timeout: float | None
    ) -> bytes:
        """The PNG of one image; raises named errors; cancelling the call cancels the image."""

    async def health(self) -> Health:
        """Whether an image could be made now."""

    def owed_seconds(self) -> float:
        """Predicted seconds of the work under way."""


def build_api(
    conductor: Conductor, facts: ServiceFacts, *, origins: Sequence[str], version: str
) -> ASGIApp:
    """The whole HTTP face of the service as an ASGI app."""
    api = FastAPI(title="Aura Serve", version=version)
    describe = api.openapi

    @api.post(
        "/generate", status_code=201, response_model=Answer, responses={**_PICTURE, **_ERRORS}
    )
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Pictures from a prompt."""
        order = order_generate(body, facts, secrets.randbelow(SEED[1] + 1))
        return await _fulfil(order, body.timeout_seconds, request)

    @api.post("/refine", status_code=201, response_model=Answer, responses={**_PICTURE, **_ERRORS})
    async def refine(body: RefineRequest, request: Request) -> Response:
        """Pictures from pictures and a prompt."""
        images = await asyncio.to_thread(_read_all, body.base_images or body.images or [])
        order = order_refine(body, images, facts, secrets.randbelow(SEED[1] + 1))
        return await _fulfil(order, body.timeout_seconds, request)

    @api.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> Response:
        """Whether an image could be made now, and by whom."""
        now = await conductor.health()
        body = HealthAnswer.model_construct(
            status=now.condition,
            reason=now.reason,
            model=facts.model,
            refiner=facts.refiner,
            device=facts.device,
            precision=facts.precision,
            replicas=now.replicas,
            owed_seconds=round(now.owed_seconds, 3),
            safety_filter="off",
            version=version,
        ).model_dump(by_alias=True)
        if now.condition is Condition.READY:
            return JSONResponse(body)
        headers = {"Retry-After": str(retry_after(now.owed_seconds))}
        return JSONResponse(body, status_code=503, headers=headers)

    @api.get("/livez")
    async def livez() -> dict[str, str]:
        """That the process answers."""
        return {"status": "alive"}

    def _read_all(texts: list[str]) -> list[BaseImage]:
        return [read_image(text, i, facts.sizes) for i, text in enumerate(texts)]

    async def _fulfil(order: Order, timeout: float | None, request: Request) -> Response:
        began, job = time.perf_counter(), uuid4().hex
        pngs = await _make_all(conductor, order, job, timeout)
        if request.headers.get("accept") == "image/png" and len(pngs) == 1:
            return Response(pngs[0], status_code=201, media_type="image/png")
        first = order.specs[0][0]
        meta = Meta.model_construct(
            model=facts.model,
            duration_ms=round((time.perf_counter() - began) * 1000),
            seeds=[spec.seed for spec, _ in order.specs],
            width=first.width,
            height=first.height,
            steps=first.steps,
            guidance_scale=first.guidance,
            sampler=first.sampler,
            refined=order.refined,
            job_id=job,
            warnings=list(order.warnings),
        ).model_dump(by_alias=True, mode="json")
        body = await asyncio.to_thread(_with_pictures, pngs, meta)
        return Response(body, status_code=201, media_type="application/json")

    @api.exception_handler(AuraError)
    async def named(request: Request, error: AuraError) -> Response:
        return answer_error(error, request.state.request_id, conductor.owed_seconds())

    @api.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        request.state.answered = True
        return answer_error(error, request.state.request_id, conductor.owed_seconds())

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [_problem(e, request.url.path) for e in error.errors()]
        if any(e["type"] == "json_invalid" for e in error.errors()):
            return answer(
                400, "INVALID_JSON", "the body is not valid JSON", request.state.request_id
            )
        path, sentence = problems[0]
        message = f"{path} {sentence}".strip()
        return answer(400, "VALIDATION_ERROR", message, request.state.request_id, details=problems)

    @api.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        codes = {
            400: "INVALID_JSON",
            404: "NOT_FOUND",
            405: "METHOD_NOT_ALLOWED",
            413: "PAYLOAD_TOO_LARGE",
        }
        sentences = {
            404: "there is no such address here; see /docs",
            405: "this address does not take that method",
            413: TOO_LARGE,
        }
        status = error.status_code
        return answer(
            status,
            codes.get(status, "VALIDATION_ERROR"),
            sentences.get(status, "the body could not be read"),
            request.state.request_id,
            headers=dict(error.headers or {}),
        )

    api.openapi = lambda: _without_422(describe())  # type: ignore[method-assign]
    return surround(api, origins)


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """The description as it is true here: what FastAPI calls 422 is answered 400."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    return document


async def _make_all(
    conductor: Conductor, order: Order, job: str, timeout: float | None
) -> list[bytes]:
    """The PNGs of an order, made at once; the first failure cancels the others and is told."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(conductor.make(f"{job}-{i}", spec, source, timeout))
                for i, (spec, source) in enumerate(order.specs)
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _with_pictures(pngs: list[bytes], meta: dict[str, Any]) -> bytes:
    """The answer as bytes: megabytes of base64, so not on the event loop."""
    pictures = [base64.b64encode(png).decode() for png in pngs]
    return bytes(JSONResponse({"images": pictures, "meta": meta}).body)


def _problem(error: dict[str, Any], route: str) -> tuple[str, str]:
    """Path and sentence of one pydantic error; what was sent is never repeated at length."""
    path = ".".join(map(str, error["loc"][1:]))
    kind = error["type"]
    if kind == "extra_forbidden":
        model = RefineRequest if route == "/refine" else GenerateRequest
        near = near_field(model, str(error["loc"][-1]))
        return path, "is no field of this request" + (f"; did you mean {near}?" if near else "")
    if kind == "missing":
        return path or "body", "is required"
    if kind == "string_too_short":
        return path, "must not be empty"
    if kind in ("string_too_long", "too_long"):
        most = error["ctx"]["max_length"]
        unit = "characters" if kind == "string_too_long" else "entries"
        return path, f"must have at most {most} {unit}"
    said = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return path, said[0].lower() + said[1:]
