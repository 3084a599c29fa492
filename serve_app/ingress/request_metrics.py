"""The duration, status and error code of every HTTP request, recorded on a meter."""

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.service.metrics import HTTP_ERRORS, HTTP_REQUEST_DURATION, Meter

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_NO_RESPONSE = 499  # nginx's status for a client that closed the connection


class RequestMetricsMiddleware:
    """Records each request when its response has been sent, or will never be.

    A route is named by its template, as in /jobs/{id}, so that labels have few values. It must be
    the outermost middleware. The code of an error is what `errors.respond` left in the state.
    """

    def __init__(
        self, app: ASGIApp, meter: Meter, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app = app
        self._meter = meter
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock(), _NO_RESPONSE

        async def send_recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._meter.record(
                HTTP_REQUEST_DURATION,
                self._clock() - started,
                route=getattr(scope.get("route"), "path", "unmatched"),
                method=method,
                status=str(status),
            )
            if code := scope.get("state", {}).get("error_code"):
                self._meter.record(HTTP_ERRORS, code=code, status=str(status))
