"""One table: a named error to status and code, and the body that every error has.

Knows no routes. A body never holds a path, a class name, a prompt or a stack: what is not in the
table is told as INTERNAL, and its stack goes to the log alone.
"""

import logging
import math
from collections.abc import Sequence

from starlette.responses import JSONResponse

from serve_app.core.errors import (
    AuraError,
    CallerError,
    DeadlineExceeded,
    Draining,
    EngineFault,
    InvalidImage,
    InvalidRequest,
    Loading,
    ModelNotFound,
    OutOfMemory,
    ProfileChanged,
    ReplicaLost,
    ServiceError,
)

logger = logging.getLogger("aura.ingress")

TABLE: dict[type[AuraError], tuple[int, str]] = {
    InvalidRequest: (400, "VALIDATION_ERROR"),
    InvalidImage: (400, "INVALID_IMAGE"),
    ModelNotFound: (404, "MODEL_NOT_FOUND"),
    CallerError: (400, "VALIDATION_ERROR"),
    Loading: (503, "LOADING"),
    Draining: (503, "DRAINING"),
    OutOfMemory: (503, "OUT_OF_MEMORY"),
    ReplicaLost: (503, "REPLICA_LOST"),
    ProfileChanged: (503, "REPLICA_LOST"),
    DeadlineExceeded: (504, "DEADLINE_EXCEEDED"),
    EngineFault: (500, "INTERNAL"),
    ServiceError: (503, "OVERLOADED"),
}
_SOONEST, _LATEST = 1, 120  # seconds a client is asked to wait
_INTERNAL = "something went wrong inside the service; the request id finds it in the log"


def answer(
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    details: Sequence[tuple[str, str]] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error answer in the one shape; `details` are pairs of path and message."""
    body = {
        "error": {
            "code": code,
            "message": message,
            "details": [{"path": path, "message": problem} for path, problem in details],
            "requestId": request_id,
        }
    }
    return JSONResponse(body, status_code=status, headers=headers)


def answer_error(error: Exception, request_id: str, owed_seconds: float) -> JSONResponse:
    """The answer to a named error, or INTERNAL for any other."""
    kind = next((k for k in type(error).__mro__ if k in TABLE), None)
    status, code = TABLE[kind] if kind else (500, "INTERNAL")
    if status == 500:
        logger.error("request %s failed", request_id, exc_info=error)
        return answer(500, "INTERNAL", _INTERNAL, request_id)
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(retry_after(owed_seconds))
    if status == 504:
        headers["x-should-retry"] = "false"
    details = [(error.path, error.problem)] if isinstance(error, InvalidRequest) else []
    return answer(status, code, str(error), request_id, details=details, headers=headers)


def retry_after(owed_seconds: float) -> int:
    """Seconds after which what is under way should be done, between 1 and 120."""
    return min(max(math.ceil(owed_seconds), _SOONEST), _LATEST)
