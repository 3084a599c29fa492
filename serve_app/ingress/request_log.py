"""The log of requests: one line for each, like the access log of uvicorn.

A line has the method, the template of the route, the status and the duration, and where there are
any the number of images and the ids of job and request. It never has a prompt, a query string or a
key.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

logger = logging.getLogger("aura.access")

_PROBES = ("/health", "/livez")  # which an orchestrator calls every few seconds
_NO_CALLER = "-"  # as in the Common Log Format, of a request that was refused before it had one


def log_request(
    method: str, route: str, status: int, seconds: float, state: Mapping[str, Any]
) -> None:
    """Log a request that ended; probes at DEBUG, all else at INFO.

    `state` is the request's, where the middleware and the handlers leave what they know. The fields
    of the line are the attribute `fields` of the log record, for lines of JSON.
    """
    level = logging.DEBUG if route in _PROBES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    milliseconds = round(1000 * seconds, 1)
    names = ("images", "job_id", "request_id")
    details = {name: state[name] for name in names if state.get(name) is not None}
    caller = state.get("caller", _NO_CALLER)
    words = "".join(f" {name}={value}" for name, value in details.items())
    logger.log(
        level,
        '%s - "%s %s HTTP/1.1" %d %s %.1fms%s',
        *(caller, method, route, status, _phrase(status), milliseconds, words),
        extra={
            "fields": {
                "method": method,
                "route": route,
                "status": status,
                "duration_ms": milliseconds,
                "caller": caller,
                **details,
            }
        },
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 499, which is no status of HTTP
        return "Client Closed Request"
