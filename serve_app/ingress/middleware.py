"""What surrounds every route: a request id, JSON only, a body limit, CORS on errors too.

Pure ASGI, so that cancelling a request cancels what it waits for. Knows no routes and no schemas.
"""

import re
from collections.abc import Sequence
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.errors import answer

BODY_LIMIT = 32 * 2**20  # bytes
TOO_LARGE = f"the body is over the limit of {BODY_LIMIT // 2**20} MiB"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def surround(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app with everything around it; CORS outermost, so that errors have its headers too."""
    return CORSMiddleware(
        Envelope(app),
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["Content-Type", "Authorization", "Idempotency-Key", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
        max_age=600,
    )


class Envelope:
    """Request id in and out; what is posted must be JSON; an exception never leaves without answer.

    An id that could harm a log or a header is not taken: a new one is made.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        received = 0

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_LIMIT:
                raise HTTPException(413)  # the one error that reading a body lets through
            return message

        if _announced(headers) > BODY_LIMIT:
            refusal = answer(413, "PAYLOAD_TOO_LARGE", TOO_LARGE, request_id)
            await refusal(scope, receive, send_named)
            return
        if scope["method"] == "POST" and not _is_json(headers):
            refusal = answer(
                415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json", request_id
            )
            await refusal(scope, receive, send_named)
            return
        try:
            await self._app(scope, receive_counted, send_named)
        except Exception:  # starlette answers a fault and then raises it again, for the server
            if not state.get("answered"):
                raise


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"
