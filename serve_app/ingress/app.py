"""The whole HTTP face of the service: routes, errors, what surrounds them, and its description.

Knows no Ray and no torch: the desk and the conductor are handed in.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from serve_app.core.errors import AuraError, Overloaded
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.metrics import InMemoryMeter, Meter
from serve_app.ingress.access import PUBLIC_ROUTES, AccessPolicy
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import ErrorResponse, respond, respond_to_exception
from serve_app.ingress.job_service import JobService
from serve_app.ingress.middleware import too_large, wrap
from serve_app.ingress.native.routes import RequestHandlers, routes
from serve_app.ingress.openai.routes import routes as openai_routes
from serve_app.ingress.strict_json import BadJson
from serve_app.ingress.validation import validation_error_response

_KEY = "key"  # what the description calls the header that keys come in
_UNROUTED = {
    400: ("VALIDATION_ERROR", "the body could not be read"),
    404: ("NOT_FOUND", "there is no such address here; see /docs"),
    405: ("METHOD_NOT_ALLOWED", "this address does not take that method"),
    408: ("REQUEST_TIMEOUT", "the body did not arrive in time"),
}


def build_api(
    desk: JobService,
    conductor: Maker,
    facts: ServiceInfo,
    policy: AccessPolicy,
    *,
    version: str,
    proxy_names: bool = False,
    meter: Meter | None = None,
) -> ASGIApp:
    """The service as an ASGI app. `proxy_names`: who is in front puts X-Request-Id on answers.

    `meter` hears of refusals.
    """
    api = routed(desk, conductor, facts, policy, version=version)
    return wrap(api, policy, proxy_names=proxy_names, meter=meter or InMemoryMeter())


def routed(
    desk: JobService,
    conductor: Maker,
    facts: ServiceInfo,
    policy: AccessPolicy,
    *,
    version: str,
) -> FastAPI:
    """Every route and every error, without what surrounds them."""
    api = FastAPI(
        title="Aura Serve",
        version=version,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: str(route.name),
    )
    studio = RequestHandlers(desk, facts)
    api.include_router(routes(studio, conductor, version))
    api.include_router(openai_routes(studio))

    def told(refusal: ErrorResponse, request: Request) -> Response:
        return respond(refusal, request.scope["state"])

    def told_error(error: Exception, request: Request) -> Response:
        owed = conductor.owed_seconds()
        return respond_to_exception(error, request.scope["state"], owed)

    @api.exception_handler(AuraError)
    async def named(request: Request, error: AuraError) -> Response:
        return told_error(error, request)

    @api.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return told_error(error, request)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return told(validation_error_response(error.errors(), request.state.path), request)

    @api.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return told(ErrorResponse(400, *_UNROUTED[400]), request)

    @api.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        status = error.status_code
        code, sentence = _UNROUTED.get(status, _UNROUTED[400])
        if isinstance(error, BadJson):
            code, sentence = "INVALID_JSON", error.detail
        if status == 413:
            code, sentence = "PAYLOAD_TOO_LARGE", too_large(policy.max_body_bytes)
        if status == 503:
            return told_error(Overloaded("too many large bodies are being read"), request)
        return told(
            ErrorResponse(status, code, sentence, headers=dict(error.headers or {})), request
        )

    describe = api.openapi
    # a method is replaced because FastAPI has no other way to extend its description
    api.openapi = lambda: described(describe(), facts, policy)  # type: ignore[method-assign]
    return api


def described(document: dict[str, Any], facts: ServiceInfo, policy: AccessPolicy) -> dict[str, Any]:
    """The description as it is true here, with what this checkpoint and these settings allow."""
    if policy.keys:
        document["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if (method.upper(), path) not in PUBLIC_ROUTES:
                    operation["security"] = [{_KEY: []}]
    schemas = document["components"]["schemas"]
    for schema in ("HTTPValidationError", "ValidationError"):
        schemas.pop(schema, None)
    for methods in document["paths"].values():
        for operation in methods.values():
            refused = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(refused):  # what FastAPI calls 422 is 400 here
                del operation["responses"]["422"]
    schemas["TermsAcceptance"]["properties"]["terms"]["const"] = facts.terms_digest
    for name, fields in {
        "GenerateRequest": ("prompt", "negativePrompt"),
        "RefineRequest": ("prompt", "refinePrompt", "negativePrompt"),
    }.items():
        for field in fields:
            _text(schemas[name]["properties"][field])["maxLength"] = facts.max_prompt_chars
    sizes = [model.sizes for model in facts.models]
    for side in ("width", "height"):
        _number(schemas["GenerateRequest"]["properties"][side]).update(
            minimum=min(rules.min_side for rules in sizes),
            maximum=max(rules.max_side for rules in sizes),
            multipleOf=8,
        )
    return document


def _text(field: dict[str, Any]) -> dict[str, Any]:
    return _of_type(field, "string")


def _number(field: dict[str, Any]) -> dict[str, Any]:
    return _of_type(field, "integer")


def _of_type(field: dict[str, Any], type: str) -> dict[str, Any]:
    """The branch of a field that may be null too."""
    branches: list[dict[str, Any]] = field.get("anyOf", [field])
    return next(branch for branch in branches if branch.get("type") == type)
