"""The OpenAI door: the Images API in OpenAI's form, with OpenAI's error shape."""

from typing import Any

from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.openai.routes import router
from serve_app.ingress.openai.schemas import WIRE_NAMES
from serve_app.ingress.validation import field_error

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: ErrorResponse, request_id: str) -> dict[str, Any]:
    """Return the JSON of an error; OpenAI's clients take the request id from the header."""
    default_type = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.status, default_type),
            "param": error.details[0][0] if error.details else None,
            "code": error.code.lower(),
        }
    }


OPENAI = Door(router=router, error_body=error_body, field_error=field_error, wire_names=WIRE_NAMES)
