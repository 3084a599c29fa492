"""Pydantic's validation errors as plain sentences; each door completes them with its own names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serve_app.core.suggest import suggest
from serve_app.core.validation_message import validation_message
from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.errors import MAX_DETAILS, shorten

_WHOLE_BODY = "body"  # the path of a problem with the body as a whole


def validation_error_response(
    errors: Sequence[Mapping[str, Any]], door: Door, route: str
) -> ErrorResponse:
    """Return the response to a body with these errors."""
    details = [door.field_error(error, route) for error in errors[:MAX_DETAILS]]
    path, problem = details[0]
    return ErrorResponse(400, "VALIDATION_ERROR", f"{path} {problem}", details)


def field_error(error: Mapping[str, Any], route: str) -> tuple[str, str]:
    """Return the path of a wrong field, and its problem as a clause."""
    path = shorten(".".join(map(str, error["loc"][1:]))) or _WHOLE_BODY
    match error["type"]:
        case "extra_forbidden":
            return path, "is not a field of this request"
        case "missing":
            return path, "is required"
    message = validation_message(error)
    return path, message[0].lower() + message[1:]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that an unknown one was probably meant to be."""
    known = list(names)
    if len(name) > 2 * max(map(len, known)):
        return None
    return suggest(name, known)
