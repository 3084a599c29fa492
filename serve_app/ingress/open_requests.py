"""A bound on the requests that one ingress process has open: the last resort of admission.

Jobs are bounded by admission. But a request is open before its job is admitted, while its body is
read; and requests with one idempotency key wait for one job. Calls about a job wait for the ledger.
Ray Serve lets a request wait, health checks included, when too many are open, so they are refused
before that. The last quarter of the places is shared by callers, as `has_room` says: a caller who
sends slow bodies does not keep others from sending theirs.
"""

from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.core.caller import Caller
from serve_app.core.capacity.open_requests import has_room
from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.errors import Overloaded
from serve_app.ingress.access import is_public
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import respond_to_exception
from serve_app.ingress.image_links import LINKS

# Requests that may be open for each job that may be: some of them are not yet, or never, jobs.
_REQUESTS_PER_JOB = 2
_CALLS_PER_JOB = 1  # the same of calls that send nothing: those about a job


def max_open_requests(max_jobs: int) -> int:
    """Return how many counted requests an ingress process may have open."""
    return (_REQUESTS_PER_JOB + _CALLS_PER_JOB) * max_jobs


class _OpenRequests:
    """The requests that are open, by caller, and how many may be."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: Counter[Caller] = Counter()

    def has_room(self, caller: Caller) -> bool:
        return has_room(self._numbers, caller, self._limit)

    def begin(self, caller: Caller) -> None:
        self._numbers[caller] += 1

    def end(self, caller: Caller) -> None:
        self._numbers[caller] -= 1
        if not self._numbers[caller]:
            del self._numbers[caller]


def _is_free(method: str, path: str) -> bool:
    """Return whether a request costs next to nothing: a link needs no key, but reads an image."""
    return is_public(method, path) and not path.startswith(LINKS)


class OpenRequestsMiddleware:
    """Refuses requests while too many are open.

    POST has a bound of its own, so that jobs can be read and cancelled while no new one is taken.
    Pages, their files, the licences and probes are not counted: no queue holds them up. `caller_of`
    returns the caller of a name.
    """

    def __init__(
        self, app: ASGIApp, maker: Maker, max_jobs: int, caller_of: Callable[[str], Caller]
    ) -> None:
        self._app = app
        self._maker = maker
        self._caller_of = caller_of
        self._posts = _OpenRequests(_REQUESTS_PER_JOB * max_jobs)
        self._calls = _OpenRequests(_CALLS_PER_JOB * max_jobs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or _is_free(scope["method"], scope["state"]["path"]):
            await self._app(scope, receive, send)
            return
        is_post = scope["method"] == "POST"
        requests = self._posts if is_post else self._calls
        caller = self._caller_of(scope["state"]["caller"])
        if not requests.has_room(caller):
            seconds = self._maker.owed_seconds()
            error = Overloaded(
                "as many requests are open as may be, in all or of one caller",
                retry_after=self._maker.send_away(caller) if is_post else bounded_retry(seconds),
            )
            await respond_to_exception(error, scope["state"], 0)(scope, receive, send)
            return
        requests.begin(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            requests.end(caller)
