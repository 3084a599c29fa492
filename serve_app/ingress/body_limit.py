"""Limits on request bodies: the size of one, the memory of all of them, and the time of a read.

The server reads what is left of a refused body (uvicorn does, and Serve runs uvicorn), so that the
client gets the response and not a connection reset. A compressed body counts by what it unfolds to,
and unfolds while it is read.
"""

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.caller import Caller
from serve_app.core.errors import Overloaded
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.body_budget import BodyBudget, BodyShare
from serve_app.ingress.content_encoding import ACCEPTED, Decoder, open_decoder
from serve_app.ingress.door import ErrorResponse
from serve_app.ingress.errors import respond, respond_to_exception
from serve_app.ingress.http_errors import BodyTimeout, PayloadTooLarge, UnsupportedMediaType

_MAX_DIGITS = 18  # of a Content-Length that is worth parsing
_UNKNOWN_CODING = ErrorResponse(
    415,
    UnsupportedMediaType.code,
    f"Content-Encoding must be {ACCEPTED.replace(', ', ' or ')}, or absent",
    headers={"Accept-Encoding": ACCEPTED},  # RFC 9110, section 15.5.16
)


class LimitedBody:
    """An ASGI `receive` that reads one body within its limits, decoded where it is compressed.

    `max_coded_bytes` limits what is received of a compressed body: it may unfold to nothing.
    """

    def __init__(
        self,
        receive: Receive,
        share: BodyShare,
        timeout: float,
        decoder: Decoder | None = None,
        max_coded_bytes: int = 0,
    ) -> None:
        self._receive = receive
        self._share = share
        self._timeout = timeout
        self._decoder = decoder
        self._max_coded_bytes = max_coded_bytes
        self._coded_bytes = 0
        self._received = False  # whether all of the body has arrived
        self._complete = False  # whether all of it was handed on

    async def __call__(self) -> Message:
        """Return the next message.

        Raises `BodyTimeout`, `PayloadTooLarge`, `Overloaded` or `InvalidEncoding`.
        """
        if self._complete:  # what comes now is the client's leaving, whenever that is
            return await self._receive()
        if self._decoder is not None:
            return await self._decoded(self._decoder)
        message = await self._next()
        self._complete = self._received
        self._share.add(len(message.get("body", b"")))
        return message

    async def _next(self) -> Message:
        """Return the next message as it arrives."""
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(
                f"no more of the body arrived within {self._timeout:g} seconds"
            ) from None
        self._received = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _decoded(self, decoder: Decoder) -> Message:
        """Return a message with the next piece of a compressed body."""
        await asyncio.sleep(0)  # other requests run between the pieces
        while not (piece := decoder.read()) and not self._received:
            message = await self._next()
            if message["type"] != "http.request":
                self._complete = True
                return message
            coded = message.get("body", b"")
            self._coded_bytes += len(coded)
            if self._coded_bytes > self._max_coded_bytes:
                raise PayloadTooLarge(self._max_coded_bytes)
            decoder.feed(coded)
        if not piece:
            decoder.close()
            self._complete = True
        self._share.add(len(piece))
        return {"type": "http.request", "body": piece, "more_body": not self._complete}


class BodyLimitMiddleware:
    """Hands every request a body that keeps its limits, decoded where it is compressed.

    Refuses a body that announces too much, alone or beside others, or a coding that is not read.
    `caller_of` returns the caller of a name, and `send_away` the Retry-After of one who is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: AccessPolicy,
        caller_of: Callable[[str], Caller],
        send_away: Callable[[Caller], int],
    ) -> None:
        self._app = app
        self._policy = policy
        self._caller_of = caller_of
        self._budget = BodyBudget(policy.max_body_bytes, policy.max_open_body_bytes, send_away)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, headers, limit = scope["state"], Headers(scope=scope), self._policy.max_body_bytes
        with self._budget.open_share(self._caller_of(state["caller"])) as share:
            try:
                share.announce(_content_length(headers))
            except (PayloadTooLarge, Overloaded) as error:
                await respond_to_exception(error, state, 0)(scope, receive, send)
                return
            decoder = None
            if _has_body(headers):
                try:
                    decoder = open_decoder(",".join(headers.getlist("content-encoding")))
                except LookupError:
                    await respond(_UNKNOWN_CODING, state)(scope, receive, send)
                    return
            state["body"] = share
            body = LimitedBody(receive, share, self._policy.body_read_timeout, decoder, limit)
            await self._app(scope, body, send)


def _has_body(headers: Headers) -> bool:
    """Return whether a request announces a body (RFC 9112, section 6)."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _content_length(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length[:_MAX_DIGITS]) if length.isdecimal() else 0
