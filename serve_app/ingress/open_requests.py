"""A bound on the requests that one ingress process has open: the last resort of admission.

Jobs are bounded by admission. But a request is open before its job is admitted, while its body is
read; and requests with one idempotency key wait for one job. Calls about a job wait for the ledger.
Ray Serve lets a request wait, health checks included, when too many are open, so they are refused
before that.
"""

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.errors import Overloaded
from serve_app.ingress.access import is_public
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import respond_to_exception

# Requests that may be open for each job that may be: some of them are not yet, or never, jobs.
_REQUESTS_PER_JOB = 2
_CALLS_PER_JOB = 1  # the same of calls that send nothing: those about a job


@dataclass(slots=True)
class _Bound:
    limit: int
    open: int = 0


class OpenRequestsMiddleware:
    """Refuses requests while too many are open.

    POST has a bound of its own, so that jobs can be read and cancelled while no new one is taken.
    Pages, their files, the licences and probes are not counted: no queue holds them up.
    """

    def __init__(self, app: ASGIApp, maker: Maker, max_jobs: int) -> None:
        self._app = app
        self._maker = maker
        self._posts = _Bound(_REQUESTS_PER_JOB * max_jobs)
        self._calls = _Bound(_CALLS_PER_JOB * max_jobs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or is_public(scope["method"], scope["state"]["path"]):
            await self._app(scope, receive, send)
            return
        bound = self._posts if scope["method"] == "POST" else self._calls
        if bound.open >= bound.limit:
            seconds = self._maker.owed_seconds()
            error = Overloaded(
                "as many requests are open as may be", retry_after=bounded_retry(seconds)
            )
            await respond_to_exception(error, scope["state"], seconds)(scope, receive, send)
            return
        bound.open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            bound.open -= 1
