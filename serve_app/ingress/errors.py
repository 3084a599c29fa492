"""Errors as HTTP responses: one table of statuses, and the response in the shape of a door.

A body never holds a path, a class name, a prompt or a stack. An error that is not in the table is
answered as INTERNAL, and its stack goes to the log only.
"""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from serve_app.core import errors as core
from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.service.job_errors import JobCancelled, JobFailed, JobNotFound
from serve_app.ingress import http_errors as http
from serve_app.ingress.door import Door, ErrorResponse

logger = logging.getLogger("aura.ingress")

STATUSES: dict[type[core.AuraError], int] = {
    core.CallerError: 400,
    core.InvalidImage: 400,
    http.InvalidJson: 400,
    http.Unauthorized: 401,
    http.ForbiddenOrigin: 403,
    http.ForbiddenHost: 403,
    core.TermsNotAccepted: 403,
    core.ModelNotFound: 404,
    JobNotFound: 404,
    http.NotAcceptable: 406,
    http.BodyTimeout: 408,
    JobCancelled: 409,
    http.PayloadTooLarge: 413,
    http.UnsupportedMediaType: 415,
    core.SafetyBlock: 422,
    core.ImageTooLarge: 422,
    core.ImageKillsReplica: 422,
    http.IdempotencyConflict: 422,
    core.RateLimited: 429,
    JobFailed: 500,  # in truth the status of the job's own code
    core.EngineFault: 500,
    core.NumericFault: 500,
    core.ServiceError: 503,
    core.Overloaded: 503,
    core.Loading: 503,
    core.Draining: 503,
    core.OutOfMemory: 503,
    core.ModelUnavailable: 503,
    core.ReplicaLost: 503,
    core.UpstreamError: 502,
    core.DeadlineExceeded: 504,
}
MAX_DETAILS = 20  # wrong fields that one response lists
_STATUS_OF_CODE = {kind.code: status for kind, status in STATUSES.items()}
_FINAL_CODES = {kind.code for kind in STATUSES if kind.is_final}
_MAX_WORD, _MAX_SENTENCE = 40, 300  # characters of a caller's text that a response repeats
_LONG_WORD = re.compile(rf"(\S{{{_MAX_WORD}}})\S+")
_INTERNAL_CODE = core.EngineFault.code
_INTERNAL = "internal error; the service's log has the details under this request id"


def error_response(
    error: Exception, owed_seconds: float, wire_names: Mapping[str, str] | None = None
) -> ErrorResponse:
    """Return how an error is answered; an error without a status is INTERNAL.

    `owed_seconds` are those until the backlog is done, which become Retry-After where the error
    knows no better. `wire_names` are a door's own names
    of the domain's fields.
    """
    status, code = _status_and_code(error)
    if code == _INTERNAL_CODE:
        return ErrorResponse(500, code, _INTERNAL)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, core.RateLimited):
        headers["Retry-After"] = str(bounded_retry(error.seconds))
    is_final = code in _FINAL_CODES or (isinstance(error, core.AuraError) and error.is_final)
    if is_final:
        headers["x-should-retry"] = "false"
    elif isinstance(error, core.Overloaded):
        headers["Retry-After"] = str(error.retry_after)
    elif status in (503, 504):
        headers["Retry-After"] = str(bounded_retry(owed_seconds))
    details = []
    if isinstance(error, core.InvalidRequest):
        path = (wire_names or {}).get(error.path, error.path)
        error = core.InvalidRequest(path, error.problem, remedy=error.remedy)
        details = [(path, error.problem)]
    return ErrorResponse(status, code, str(error), details, headers, is_final)


def respond(error: ErrorResponse, state: MutableMapping[str, Any]) -> JSONResponse:
    """Return the response to a request with this ASGI state, in the shape of its door.

    Leave the code in the state as `error_code`, for the meter.
    """
    state["error_code"] = error.code
    door: Door = state["door"]
    shortened = ErrorResponse(
        error.status,
        error.code,
        shorten(error.message),
        [(shorten(path), shorten(problem)) for path, problem in error.details[:MAX_DETAILS]],
    )
    body = door.error_body(shortened, state["request_id"])
    return JSONResponse(body, status_code=error.status, headers=dict(error.headers))


def respond_to_exception(
    error: Exception, state: MutableMapping[str, Any], owed_seconds: float
) -> JSONResponse:
    """Return the response to an exception; log a 500, an internal error with its stack."""
    door: Door = state["door"]
    response = error_response(error, owed_seconds, door.wire_names)
    fields = {"request_id": state["request_id"]}
    if response.code == _INTERNAL_CODE:
        logger.error(
            "request %s failed", state["request_id"], exc_info=error, extra={"fields": fields}
        )
    elif response.status == 500:
        logger.warning("request %s: %s", state["request_id"], error, extra={"fields": fields})
    return respond(response, state)


def shorten(text: str) -> str:
    """Return the text at a length fit for a response, and sure to be encodable."""
    short = _LONG_WORD.sub(r"\1…", text[: 10 * _MAX_SENTENCE])
    if len(short) > _MAX_SENTENCE:
        short = short[:_MAX_SENTENCE] + "…"
    return short.encode("utf-8", "replace").decode()


def _status_and_code(error: Exception) -> tuple[int, str]:
    """Return the status of the nearest class in the table, and the error's own code."""
    if isinstance(error, JobFailed):
        status = _STATUS_OF_CODE.get(error.code)
        return (status, error.code) if status else (500, _INTERNAL_CODE)
    for kind in type(error).__mro__:
        if kind in STATUSES and isinstance(error, core.AuraError):
            return STATUSES[kind], error.code
    return 500, _INTERNAL_CODE
