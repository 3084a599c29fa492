"""What surrounds every route: a request id, the checks of `security.py`, a body limit, CORS.

Pure ASGI, so that cancelling a request cancels what it waits for. Knows no schemas.
From outside in: the envelope names the request; origins are checked; CORS headers are put on
whatever comes out of the door, errors too. What is left of a refused body is the server's to read:
uvicorn, Serve's too, takes it off the line, so that the client hears the answer and no reset.
"""

import asyncio
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import CallerError, PayloadTooLarge
from serve_app.core.service.metrics import Meter
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.errors import ErrorResponse, respond, respond_to_exception
from serve_app.ingress.request_metrics import RequestMetricsMiddleware
from serve_app.ingress.server_timing import Stopwatch

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = ("Content-Type", "Authorization", "Idempotency-Key", "X-Request-Id")
_OPENAI_HEADERS = (  # what OpenAI's JavaScript client sends from a page
    "OpenAI-Organization",
    "OpenAI-Project",
    *(f"X-Stainless-{name}" for name in ("Arch", "Lang", "OS", "Package-Version", "Retry-Count")),
    *(f"X-Stainless-{name}" for name in ("Runtime", "Runtime-Version", "Timeout")),
)
_HELD = 16  # times the body limit that all requests together may hold
_SMALL = 2**18  # bytes of a body that always finds room
_LONGEST_NUMBER = 18  # digits of a length that is worth reading


def wrap(app: ASGIApp, policy: AccessPolicy, *, proxy_names: bool, meter: Meter) -> ASGIApp:
    """The app with everything around it.

    `proxy_names` says that whoever is in front puts X-Request-Id on the answers, as Serve does.
    `meter` hears of every request that is refused.
    """
    cors = CorsMiddleware(
        AccessMiddleware(app, policy),
        allow_origins=list(policy.origins),
        allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
        allow_headers=[*_HEADERS, *_OPENAI_HEADERS],
        expose_headers=["X-Request-Id", "Retry-After", "Server-Timing", "x-should-retry"],
        max_age=600,
    )
    named = RequestIdMiddleware(OriginMiddleware(cors, policy), proxy_names)
    return RequestMetricsMiddleware(named, meter)


class RequestIdMiddleware:
    """Request id in and out; what a client sends that could harm a log or a header is not taken."""

    def __init__(self, app: ASGIApp, proxy_names: bool) -> None:
        self._app = app
        self._proxy_names = proxy_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        usable = _REQUEST_ID.fullmatch(asked) is not None
        request_id = asked if usable else uuid4().hex
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"  # without a prefix
        scope.setdefault("state", {}).update(request_id=request_id, path=path, watch=Stopwatch())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if not (self._proxy_names and usable):
                    headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        await self._app(scope, receive, send_named)


class CorsMiddleware(CORSMiddleware):
    """Starlette's, but a preflight that asks for too much is refused in the shape of all errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        asks = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        if not asks or "origin" not in headers:
            await super().__call__(scope, receive, send)
            return
        told = self.preflight_response(request_headers=headers)
        if told.status_code != 200:
            kept = {n: v for n, v in told.headers.items() if not n.startswith("content-")}
            sentence = bytes(told.body).decode()
            refusal = ErrorResponse(400, "VALIDATION_ERROR", sentence, headers=kept)
            told = respond(refusal, scope["state"])
        await told(scope, receive, send)


class OriginMiddleware:
    """Pages of other origins get 403, preflights too."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._policy.check_origin(headers.get("origin"), headers.get("host", ""))
            except CallerError as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class AccessMiddleware:
    """Host, key and length are right, or the request goes no further."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy
        self._held = 0  # bytes of all bodies that are being worked at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, received = self._policy.max_body_bytes, 0
        begun = ended = False
        reading = True

        async def send_noted(message: Message) -> None:
            nonlocal begun, ended
            begun = True
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received, reading
            message = await self._next(receive) if reading else await receive()
            received += len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            reading = message["type"] == "http.request" and message.get("more_body", False)
            crowded = received > _SMALL and self._held > _HELD * limit
            if received > limit or crowded:
                status = 413 if received > limit else 503
                self._held -= received
                received = 0
                raise HTTPException(status)  # the one kind of error that body readers let through
            return message

        try:
            scope["state"]["caller"] = self._admit(scope)
        except CallerError as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, receive_counted, send_noted)
        except Exception as error:  # starlette answers a fault and then raises it again
            if not begun:
                await _refuse(error, scope, receive, send)
            elif not ended:
                raise
        finally:
            self._held -= received

    async def _next(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._policy.body_read_timeout):
                return await receive()
        except TimeoutError:
            raise HTTPException(408) from None

    def _admit(self, scope: Scope) -> str:
        """The caller's name. Raises the named error of the first check that fails."""
        headers, path, policy = Headers(scope=scope), scope["state"]["path"], self._policy
        policy.check_host(path, headers.get("host", ""))
        peer = scope["client"][0] if scope.get("client") else None
        caller = policy.caller(scope["method"], path, headers, peer)
        if _announced(headers) > policy.max_body_bytes:
            raise PayloadTooLarge(too_large(policy.max_body_bytes))
        return caller


def too_large(limit: int) -> str:
    """The sentence of a body over the limit."""
    return f"the body is over the limit of {limit / 2**20:g} MiB"


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    await respond_to_exception(error, scope["state"], 0)(scope, receive, send)


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return 0
    return int(length[:_LONGEST_NUMBER])
