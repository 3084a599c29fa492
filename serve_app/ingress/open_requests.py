"""A bound on the requests that one ingress process has open: the last resort of admission.

Jobs are bounded by admission. But a request is open before its job is admitted, while its body is
read; and requests with one idempotency key wait for one job. Ray Serve lets a request wait, health
checks included, when too many are open, so they are refused before that.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.errors import Overloaded
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import respond_to_exception

# Requests that may be open for each job that may be: some of them are not yet, or never, jobs.
_REQUESTS_PER_JOB = 2


class OpenRequestsMiddleware:
    """Refuses a POST while too many are open; anything else is answered without waiting."""

    def __init__(self, app: ASGIApp, maker: Maker, max_jobs: int) -> None:
        self._app = app
        self._maker = maker
        self._limit = _REQUESTS_PER_JOB * max_jobs
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._open >= self._limit:
            seconds = self._maker.owed_seconds()
            error = Overloaded(
                "as many requests are open as may be", retry_after=bounded_retry(seconds)
            )
            await respond_to_exception(error, scope["state"], seconds)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
