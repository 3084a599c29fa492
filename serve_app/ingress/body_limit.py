"""Limits on request bodies: the size of one, the memory of all of them, and the time of a read.

The server reads what is left of a refused body (uvicorn does, and Serve runs uvicorn), so that the
client gets the response and not a connection reset. A compressed body counts by what it unfolds to,
and unfolds while it is read.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import Overloaded
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.content_encoding import ACCEPTED, Decoder, open_decoder
from serve_app.ingress.door import ErrorResponse
from serve_app.ingress.errors import respond, respond_to_exception
from serve_app.ingress.http_errors import BodyTimeout, PayloadTooLarge, UnsupportedMediaType

_SMALL = 2**18  # bytes of a body that is read whatever the others take
_MAX_DIGITS = 18  # of a Content-Length that is worth parsing
_UNKNOWN_CODING = ErrorResponse(
    415,
    UnsupportedMediaType.code,
    f"Content-Encoding must be {ACCEPTED.replace(', ', ' or ')}, or absent",
    headers={"Accept-Encoding": ACCEPTED},  # RFC 9110, section 15.5.16
)


class BodyBudget:
    """The bytes of all request bodies in memory, of which each body takes its share."""

    def __init__(self, max_body_bytes: int, max_open_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_open_bytes = max_open_bytes
        self._bytes = 0

    @contextmanager
    def open_share(self) -> Iterator["BodyShare"]:
        """Yield the share of one body, and give it back at the end."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.release()

    def check(self, body_bytes: int, more_bytes: int = 0) -> None:
        """Return if a body of this size may stay, of which `more_bytes` are to arrive.

        Raises `PayloadTooLarge` if it never may, `Overloaded` if it may when others are done.
        """
        if body_bytes > self._max_body_bytes:
            raise PayloadTooLarge(self._max_body_bytes)
        if body_bytes > _SMALL and self._bytes + more_bytes > self._max_open_bytes:
            raise Overloaded("too many large request bodies are being read")

    def add(self, number: int) -> None:
        """Count bytes that came into memory, or left it where negative."""
        self._bytes += number


class BodyShare:
    """The bytes of one request body in memory."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def add(self, number: int) -> None:
        """Count bytes that were read; raise what `BodyBudget.check` raises, with none counted."""
        self._bytes += number
        self._budget.add(number)
        try:
            self._budget.check(self._bytes)
        except (PayloadTooLarge, Overloaded):
            self.release()
            raise

    def release(self) -> None:
        """Give back all bytes of the body."""
        self._budget.add(-self._bytes)
        self._bytes = 0


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
    """

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy
        self._budget = BodyBudget(policy.max_body_bytes, policy.max_open_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, limit = Headers(scope=scope), self._policy.max_body_bytes
        announced = _content_length(headers)
        try:
            self._budget.check(announced, announced)
        except (PayloadTooLarge, Overloaded) as error:
            await respond_to_exception(error, scope["state"], 0)(scope, receive, send)
            return
        decoder = None
        if _has_body(headers):
            try:
                decoder = open_decoder(",".join(headers.getlist("content-encoding")))
            except LookupError:
                await respond(_UNKNOWN_CODING, scope["state"])(scope, receive, send)
                return
        with self._budget.open_share() as share:
            scope["state"]["body"] = share
            body = LimitedBody(receive, share, self._policy.body_read_timeout, decoder, limit)
            await self._app(scope, body, send)


def _has_body(headers: Headers) -> bool:
    """Return whether a request announces a body (RFC 9112, section 6)."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _content_length(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length[:_MAX_DIGITS]) if length.isdecimal() else 0
