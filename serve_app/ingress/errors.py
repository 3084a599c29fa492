"""One table: a named error to status and code, and the two bodies that errors have.

Knows no routes but the prefix of the OpenAI ones, whose clients expect a shape of their own. A body
never holds a path, a class name, a prompt or a stack: what is not in the table is told as INTERNAL,
and its stack goes to the log alone.
"""

import logging
import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from serve_app.core import errors as e

logger = logging.getLogger("aura.ingress")

OPENAI = "/v1/"  # below this prefix errors have OpenAI's shape
TABLE: dict[type[e.AuraError], tuple[int, str]] = {
    e.InvalidRequest: (400, "VALIDATION_ERROR"),
    e.InvalidImage: (400, "INVALID_IMAGE"),
    e.Unauthorized: (401, "UNAUTHORIZED"),
    e.ForbiddenOrigin: (403, "FORBIDDEN_ORIGIN"),
    e.ForbiddenHost: (403, "FORBIDDEN_HOST"),
    e.TermsNotAccepted: (403, "TERMS_NOT_ACCEPTED"),
    e.ModelNotFound: (404, "MODEL_NOT_FOUND"),
    e.JobNotFound: (404, "NOT_FOUND"),
    e.JobCancelled: (409, "CANCELLED"),
    e.PayloadTooLarge: (413, "PAYLOAD_TOO_LARGE"),
    e.UnsupportedMediaType: (415, "UNSUPPORTED_MEDIA_TYPE"),
    e.SafetyBlock: (422, "SAFETY_BLOCK"),
    e.ImageTooLarge: (422, "IMAGE_TOO_LARGE_FOR_GPU"),
    e.IdempotencyConflict: (422, "IDEMPOTENCY_CONFLICT"),
    e.RateLimited: (429, "RATE_LIMITED"),
    e.CallerError: (400, "VALIDATION_ERROR"),
    e.Overloaded: (503, "OVERLOADED"),
    e.Loading: (503, "LOADING"),
    e.LedgerAway: (503, "LOADING"),
    e.Draining: (503, "DRAINING"),
    e.OutOfMemory: (503, "OUT_OF_MEMORY"),
    e.ModelUnavailable: (503, "MODEL_UNAVAILABLE"),
    e.ReplicaLost: (503, "REPLICA_LOST"),
    e.ProfileChanged: (503, "REPLICA_LOST"),
    e.DeadlineExceeded: (504, "DEADLINE_EXCEEDED"),
    e.EngineFault: (500, "INTERNAL"),
    e.JobFailed: (500, "INTERNAL"),  # or what the job was told
    e.ServiceError: (503, "OVERLOADED"),
}
_STATUSES = {code: status for status, code in TABLE.values()}
MAX_DETAILS = 20  # wrong fields that one answer lists
_LONGEST_WORD, _LONGEST_SENTENCE = 40, 300  # characters of what a caller sent, when told back
_LONG_WORD = re.compile(rf"(\S{{{_LONGEST_WORD}}})\S+")
_SOONEST, _LATEST = 1, 120  # seconds a client is asked to wait
_INTERNAL = "something went wrong inside the service; the request id finds it in the log"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error as it will be told: `details` are pairs of path and sentence."""

    status: int
    code: str
    message: str
    details: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def error_response(error: Exception, owed_seconds: float) -> ErrorResponse:
    """How an error is told; what has no name of ours is INTERNAL.

    `owed_seconds` is the work under way, from which Retry-After is computed.
    """
    kind = next((k for k in type(error).__mro__ if k in TABLE), None)
    status, code = TABLE[kind] if kind else (500, "INTERNAL")
    if isinstance(error, e.JobFailed):
        status, code = _STATUSES[error.code], error.code
    if status == 500:
        return ErrorResponse(500, "INTERNAL", _INTERNAL)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, e.RateLimited):
        headers["Retry-After"] = str(max(_SOONEST, math.ceil(error.seconds)))
    if status == 503:
        headers["Retry-After"] = str(retry_after(owed_seconds))
    if status in (409, 504):
        headers["x-should-retry"] = "false"
    details = [(error.path, error.problem)] if isinstance(error, e.InvalidRequest) else []
    return ErrorResponse(status, code, str(error), details, headers)


def respond(error: ErrorResponse, state: MutableMapping[str, Any]) -> JSONResponse:
    """The answer to a request with this ASGI state, in the shape its path's clients expect.

    The code is left in the state, as `error_code`, for whoever counts.
    """
    state["error_code"] = error.code
    told = [(shown(where), shown(what)) for where, what in error.details[:MAX_DETAILS]]
    body: dict[str, Any] = {
        "code": error.code,
        "message": shown(error.message),
        "details": [{"path": where, "message": what} for where, what in told],
        "requestId": state["request_id"],
    }
    if state["path"].startswith(OPENAI):
        general = "invalid_request_error" if error.status < 500 else "server_error"
        body = {
            "message": shown(error.message),
            "type": _TYPES.get(error.status, general),
            "param": told[0][0] if told else None,
            "code": error.code.lower(),
        }
    return JSONResponse({"error": body}, status_code=error.status, headers=dict(error.headers))


def respond_to_exception(
    error: Exception, state: MutableMapping[str, Any], owed_seconds: float
) -> JSONResponse:
    """The answer to an error; the stack of one without a name of ours is in the log."""
    refusal = error_response(error, owed_seconds)
    if refusal.status == 500:
        logger.error("request %s failed", state["request_id"], exc_info=error)
    return respond(refusal, state)


def retry_after(owed_seconds: float) -> int:
    """Seconds after which what is under way should be done, between 1 and 120."""
    if owed_seconds >= _LATEST:
        return _LATEST
    return max(math.ceil(owed_seconds), _SOONEST)


def shown(text: str) -> str:
    """The text at a length fit for an answer, and sure to be encodable."""
    short = _LONG_WORD.sub(r"\1…", text[: 10 * _LONGEST_SENTENCE])
    if len(short) > _LONGEST_SENTENCE:
        short = short[:_LONGEST_SENTENCE] + "…"
    return short.encode("utf-8", "replace").decode()
