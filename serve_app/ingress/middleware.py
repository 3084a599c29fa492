"""What surrounds every route: request ids, origins, CORS, access, body limits, last-resort errors.

Pure ASGI, so that cancelling a request cancels what it waits for. From the outside in:
`MergeSlashesMiddleware` mends the path, `RequestRecordMiddleware` records the request,
`HeadMiddleware` turns HEAD into GET, `RequestIdMiddleware` names it and finds its door,
`OriginMiddleware` refuses pages of other origins, and `CorsMiddleware` adds its headers to every
response of the rest, errors included.
"""

import re
from collections.abc import Callable, Sequence
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.caller import Caller
from serve_app.core.errors import CallerError
from serve_app.core.service.metrics import Meter
from serve_app.ingress import pages
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.body_limit import BodyLimitMiddleware
from serve_app.ingress.door import Door, ErrorResponse, find_door
from serve_app.ingress.errors import respond, respond_to_exception
from serve_app.ingress.merge_slashes import MergeSlashesMiddleware
from serve_app.ingress.request_record import RequestRecordMiddleware
from serve_app.ingress.server_timing import Stopwatch

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ALLOWED_HEADERS = (
    "Content-Type",
    "Authorization",
    "Idempotency-Key",
    "X-Request-Id",
    "Prefer",
    "Last-Event-ID",
)
_OPENAI_HEADERS = (  # what OpenAI's JavaScript client sends from a page
    "OpenAI-Organization",
    "OpenAI-Project",
    *(f"X-Stainless-{name}" for name in ("Arch", "Lang", "OS", "Package-Version", "Retry-Count")),
    *(f"X-Stainless-{name}" for name in ("Runtime", "Runtime-Version", "Timeout")),
)
_MCP_HEADERS = ("MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Mcp-Session-Id")
_EXPOSED_HEADERS = (
    "X-Request-Id",
    "Retry-After",
    "Server-Timing",
    "Location",
    "X-Aura-Warning",
    "x-should-retry",
)


def wrap(
    app: ASGIApp,
    doors: Sequence[Door],
    policy: AccessPolicy,
    *,
    proxy_sets_request_id: bool,
    meter: Meter,
    caller_of: Callable[[str], Caller],
    send_away: Callable[[Caller], int],
    guard: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """Return the app with all middleware around it.

    `proxy_sets_request_id` says that the proxy in front adds X-Request-Id to responses, as Serve's
    does. `meter` records every request. `caller_of` returns the caller of a name, and `send_away`
    the Retry-After, in seconds, of one whose body finds no room. `guard` stands where the caller is
    known, before a body is read.
    """
    limited = BodyLimitMiddleware(LastResortMiddleware(app), policy, caller_of, send_away)
    cors = CorsMiddleware(
        AccessMiddleware(guard(limited), policy),
        allow_origins=list(policy.origins),
        allow_methods=["GET", "HEAD", "POST", "DELETE", "OPTIONS"],
        allow_headers=[*_ALLOWED_HEADERS, *_OPENAI_HEADERS, *_MCP_HEADERS],
        expose_headers=_EXPOSED_HEADERS,
        max_age=600,
    )
    named = RequestIdMiddleware(OriginMiddleware(cors, policy), doors, proxy_sets_request_id)
    routers = (pages.router, *(door.router for door in doors))
    routes = [route for router in routers for route in router.routes]
    recorded = RequestRecordMiddleware(HeadMiddleware(named), meter, routes)
    return MergeSlashesMiddleware(recorded)


class HeadMiddleware:
    """Answers HEAD as GET would be, without the body (RFC 9110, section 9.3.2).

    The routes know only GET; what records requests outside of this sees HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope.setdefault("state", {})["is_head"] = True  # a stream has no end to wait for
        as_get = {**scope, "method": "GET"}  # a copy: the server reads its own while it sends
        try:
            await self._app(as_get, receive, send_head)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]


class RequestIdMiddleware:
    """Names the request and finds its door.

    A client's own id is used if it can harm neither a log nor a header.
    """

    def __init__(self, app: ASGIApp, doors: Sequence[Door], proxy_sets_request_id: bool) -> None:
        self._app = app
        self._doors = doors
        self._proxy_sets_request_id = proxy_sets_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        usable = _REQUEST_ID.fullmatch(sent) is not None
        request_id = sent if usable else uuid4().hex
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, path=path, watch=Stopwatch())
        state["door"] = find_door(self._doors, path)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if not (self._proxy_sets_request_id and usable):
                    headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        await self._app(scope, receive, send_named)


class OriginMiddleware:
    """Refuses pages of other origins, and their preflights."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._policy.check_origin(headers.get("origin"), headers.get("host", ""))
            except CallerError as error:
                await respond_to_exception(error, scope["state"], 0)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CorsMiddleware(CORSMiddleware):
    """Starlette's middleware, with refused preflights in the shape of all errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        is_preflight = (
            scope.get("method") == "OPTIONS"
            and "access-control-request-method" in headers
            and "origin" in headers
        )
        if not is_preflight:
            await super().__call__(scope, receive, send)
            return
        response = self.preflight_response(request_headers=headers)
        if response.status_code != 200:
            cors = {n: v for n, v in response.headers.items() if not n.startswith("content-")}
            message = bytes(response.body).decode()
            error = ErrorResponse(400, "VALIDATION_ERROR", message, headers=cors)
            response = respond(error, scope["state"])
        await response(scope, receive, send)


class AccessMiddleware:
    """Lets a request through if its host and key are right, with its caller's name."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            headers, path = Headers(scope=scope), scope["state"]["path"]
            peer = scope["client"][0] if scope.get("client") else None
            try:
                self._policy.check_host(path, headers.get("host", ""))
                caller = self._policy.caller(scope["method"], path, headers, peer)
            except CallerError as error:
                await respond_to_exception(error, scope["state"], 0)(scope, receive, send)
                return
            scope["state"]["caller"] = caller
        await self._app(scope, receive, send)


class LastResortMiddleware:
    """Answers an error that no handler answered.

    Starlette raises an error again after its handler has answered it; that one ends here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        response = _SentResponse(send)
        try:
            await self._app(scope, receive, response)
        except Exception as error:
            if scope["type"] != "http" or (response.started and not response.complete):
                raise
            if not response.started:
                await respond_to_exception(error, scope["state"], 0)(scope, receive, send)


class _SentResponse:
    """An ASGI `send` that knows how far the response has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        is_body = message["type"] == "http.response.body"
        self.complete = is_body and not message.get("more_body", False)
        await self._send(message)
