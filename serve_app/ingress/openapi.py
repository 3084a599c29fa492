"""The OpenAPI document, as it is true with this service's checkpoints and settings."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.access import AccessPolicy, is_public
from serve_app.ingress.door import Door, OpenApiDocument
from serve_app.ingress.openapi_fields import complete_fields

GENERATION_ERRORS = (400, 401, 403, 404, 406, 409, 413, 415, 422, 429, 502, 503, 504)
_KEY_SCHEME = "key"
_ABOUT = (
    "Images by Stable Diffusion XL on your own machines. Every example works on the demo, "
    "which ships with the service."
)
_ERROR_DESCRIPTIONS = {
    400: "Not JSON, or a field that is missing, unknown or out of range",
    401: "The API key is missing or wrong",
    403: "The host or origin is not on the list, or the terms are not accepted",
    404: "Unknown name or id",
    406: "The Accept header allows nothing that the request could return",
    409: "The job was cancelled while this call waited for it",
    413: "The body is over the limit",
    415: "The body has another media type",
    422: "Refused by a safety filter, too large for the device, or a reused idempotency key",
    429: "The caller's rate limit is used up; see Retry-After",
    500: "Internal error, or an image whose numbers are not finite",
    502: "The cloud that was to make the images failed",
    503: "The service can't answer now; see Retry-After",
    504: "Not ready within the time allowed",
}


def error_responses(*statuses: int, model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for its description; 500 is always among them."""
    return {
        status: {"model": model, "description": _ERROR_DESCRIPTIONS[status]}
        for status in sorted({500, *statuses})
    }


def complete(
    document: OpenApiDocument, doors: Sequence[Door], info: ServiceInfo, policy: AccessPolicy
) -> OpenApiDocument:
    """Return FastAPI's document, changed in place.

    It gets keys, this API's errors, each door's own part, and what every request field means.
    """
    notice = f" Here, {info.cloud_notice}." if info.cloud_notice else ""
    document["info"]["description"] = _ABOUT + notice
    if policy.keys:
        _require_key(document)
    _drop_fastapi_errors(document)
    _summarize(document)
    for door in doors:
        door.describe(document, info)
    complete_fields(document, doors, info)
    return document


def branch_of_type(field: dict[str, Any], type: str) -> dict[str, Any]:
    """Return the branch of a nullable field's schema that has the type."""
    branches: list[dict[str, Any]] = field.get("anyOf", [field])
    return next(branch for branch in branches if branch.get("type") == type)


def _require_key(document: OpenApiDocument) -> None:
    schemes = {_KEY_SCHEME: {"type": "http", "scheme": "bearer"}}
    document["components"]["securitySchemes"] = schemes
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if not is_public(method.upper(), path):
                operation["security"] = [{_KEY_SCHEME: []}]


def _summarize(document: OpenApiDocument) -> None:
    """Head every operation with the first sentence of its description, not with its name."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["summary"] = operation["description"].split("\n")[0].rstrip(".")


def _drop_fastapi_errors(document: OpenApiDocument) -> None:
    """Drop FastAPI's 422 for an invalid body, which is 400 in this API."""
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", {})):
                del operation["responses"]["422"]
