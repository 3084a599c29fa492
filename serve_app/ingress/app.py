"""The whole HTTP API: the doors, their errors, the middleware around them, and its description.

No Ray, no torch: the job service and the conductor are handed in.
"""

from collections.abc import Sequence
from functools import cache, partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.errors import AuraError
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.metrics import InMemoryMeter, Meter
from serve_app.ingress import openapi, pages
from serve_app.ingress.a1111.door import A1111
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.contracts import Maker
from serve_app.ingress.door import Door, ErrorResponse, allowed_methods
from serve_app.ingress.errors import respond, respond_to_exception
from serve_app.ingress.job_service import JobService
from serve_app.ingress.mcp.rerun import RERUN_FORMAT as MCP_RERUN_FORMAT
from serve_app.ingress.middleware import wrap
from serve_app.ingress.native.door import NATIVE
from serve_app.ingress.open_requests import OpenRequestsMiddleware
from serve_app.ingress.openai.door import OPENAI
from serve_app.ingress.services import ApiServices
from serve_app.ingress.validation import validation_error_response

DOORS: tuple[Door, ...] = (NATIVE, OPENAI, A1111)  # paths of no route are answered by the first
RERUN_FORMATS = {
    form.route: form
    for form in (*(form for door in DOORS for form in door.rerun_formats), MCP_RERUN_FORMAT)
}
_UNREADABLE = ErrorResponse(400, "VALIDATION_ERROR", "the body could not be read")
_FRAMEWORK_ERRORS = {  # what Starlette raises by itself, by status
    404: ("NOT_FOUND", "no such route; see /docs"),
    405: ("METHOD_NOT_ALLOWED", "this route does not take that method; see /docs"),
}


def open_doors(*, a1111: bool = True, mcp: bool = False) -> tuple[Door, ...]:
    """Return the doors that the settings leave open; `mcp` needs its SDK, an optional extra."""
    doors = tuple(door for door in DOORS if a1111 or door is not A1111)
    if not mcp:
        return doors
    from serve_app.ingress.mcp.door import MCP

    return (*doors, MCP)


def build_api(
    jobs: JobService,
    conductor: Maker,
    info: ServiceInfo,
    policy: AccessPolicy,
    *,
    version: str,
    proxy_sets_request_id: bool = False,
    meter: Meter | None = None,
    max_jobs: int = AdmissionLimits().open_requests,
    base_url: str | None = None,
    webhook_urls: frozenset[str] = frozenset(),
    doors: Sequence[Door] = DOORS,
) -> ASGIApp:
    """Return the service as an ASGI app.

    `proxy_sets_request_id` says that the proxy in front adds X-Request-Id to responses. `meter`
    records errors. `max_jobs` are the jobs that may be open. `base_url` is the public address.
    `webhook_urls` are the receivers that jobs may name. `doors` are those that are open.
    """
    services = ApiServices(jobs, conductor, info, version, base_url, webhook_urls)
    return wrap(
        build_routes(services, policy, doors),
        doors,
        policy,
        proxy_sets_request_id=proxy_sets_request_id,
        meter=meter or InMemoryMeter(),
        caller_of=jobs.caller,
        send_away=conductor.send_away,
        guard=partial(
            OpenRequestsMiddleware, maker=conductor, max_jobs=max_jobs, caller_of=jobs.caller
        ),
    )


def build_routes(
    services: ApiServices, policy: AccessPolicy, doors: Sequence[Door] = DOORS
) -> FastAPI:
    """Return the doors' routes and errors, without the middleware."""
    api = FastAPI(
        title="Aura Serve",
        version=services.version,
        openapi_url=None,  # `pages` has this route and the pages for people
        redirect_slashes=False,
    )
    api.state.services = services
    routers = [pages.router, *(door.router for door in doors)]
    # As they are: including routers would build every route anew for each app.
    api.router.routes.extend(route for router in routers for route in router.routes)
    api.exception_handler(AuraError)(_answer_error)
    api.exception_handler(Exception)(_answer_error)
    api.exception_handler(RequestValidationError)(_answer_invalid_body)
    api.exception_handler(ClientDisconnect)(_answer_disconnect)
    api.exception_handler(HTTPException)(partial(_answer_framework_error, routers))
    describe = api.openapi
    # A method is replaced because FastAPI has no other way to extend its description.
    api.openapi = cache(  # type: ignore[method-assign]
        lambda: openapi.complete(describe(), doors, services.info, policy)
    )
    return api


async def _answer_error(request: Request, error: Exception) -> Response:
    services: ApiServices = request.app.state.services
    owed_seconds = services.conductor.owed_seconds()
    return respond_to_exception(error, request.scope["state"], owed_seconds)


async def _answer_invalid_body(request: Request, error: RequestValidationError) -> Response:
    state = request.scope["state"]
    return respond(validation_error_response(error.errors(), state["door"], state["path"]), state)


async def _answer_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return respond(_UNREADABLE, request.scope["state"])


async def _answer_framework_error(
    routers: Sequence[APIRouter], request: Request, error: HTTPException
) -> Response:
    """Answer an unknown route, a wrong method, or a form that Starlette can't parse."""
    response = _UNREADABLE
    if error.status_code in _FRAMEWORK_ERRORS:
        code, message = _FRAMEWORK_ERRORS[error.status_code]
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of one route of the path
            headers["Allow"] = ", ".join(allowed_methods(routers, request.state.path))
        response = ErrorResponse(error.status_code, code, message, headers=headers)
    return respond(response, request.scope["state"])
