"""The record of every HTTP request: on a meter, and as one line in the log."""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.service.metrics import HTTP_ERRORS, HTTP_REQUEST_DURATION, Meter
from serve_app.ingress.request_log import log_request

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_NO_RESPONSE = 499  # nginx's status for a client that closed the connection
_UNMATCHED = "unmatched"  # the route of a path that has none


class RequestRecordMiddleware:
    """Records each request when its response has been sent, or will never be.

    A route is named by its template, as in /jobs/{id}: labels then have few values, and the log
    has no id, no query string and nothing else that a client wrote. Only what mends the path
    stands outside of it. The code of an error is what `errors.respond` left in the state.
    """

    def __init__(
        self,
        app: ASGIApp,
        meter: Meter,
        routes: Sequence[BaseRoute] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._meter = meter
        self._routes = routes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock(), _NO_RESPONSE
        # What is read, checked or waited for from here on counts against the request's deadline.
        scope.setdefault("state", {})["arrived"] = asyncio.get_running_loop().time()

        async def send_recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        finally:
            self._record(scope, status, self._clock() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route, state = self._template(scope), scope.get("state", {})
        labels = {"route": route, "method": method, "status": str(status)}
        self._meter.record(HTTP_REQUEST_DURATION, seconds, **labels)
        if code := state.get("error_code"):
            self._meter.record(HTTP_ERRORS, code=code, status=str(status))
        log_request(method, route, status, seconds, state)

    def _template(self, scope: Scope) -> str:
        """Return the template of the route, also of a request that was refused before it."""
        if route := scope.get("route"):
            return str(getattr(route, "path", _UNMATCHED))
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return next((getattr(route, "path", _UNMATCHED) for route in matching), _UNMATCHED)
