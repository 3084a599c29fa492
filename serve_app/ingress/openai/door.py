"""The OpenAI door: the Images API in OpenAI's form, with OpenAI's error shape."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress import field_docs
from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.openai.rerun import RERUN_FORMATS
from serve_app.ingress.openai.routes import router
from serve_app.ingress.openai.schemas import EDITS, GENERATIONS, WIRE_NAMES
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


def body_examples(info: ServiceInfo) -> Mapping[str, Mapping[str, Any]]:
    """Return the examples of each route's body, by their names; a form's has no file."""
    return {
        GENERATIONS: {
            "prompt": {
                "summary": "A prompt alone",
                "value": {"prompt": "a red circle on a white background"},
            },
            "settings": {
                "summary": "OpenAI's settings, and this service's own",
                "value": {
                    "model": "gpt-image-1",
                    "prompt": "a large yellow star on a black background",
                    "n": 1,
                    "size": "1536x1024",
                    "seed": 7,
                    "num_inference_steps": 20,
                },
            },
        },
        EDITS: {
            "prompt": {
                "summary": "A prompt for the files",
                "value": {"prompt": "a large red heart on a white background", "strength": 0.6},
            },
        },
    }


OPENAI = Door(
    router=router,
    error_body=error_body,
    field_error=field_error,
    wire_names=WIRE_NAMES,
    field_docs=field_docs.OPENAI,
    body_examples=body_examples,
    rerun_formats=RERUN_FORMATS,
)
