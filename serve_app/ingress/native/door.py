"""The native door: the service's own API, with its error shape and its part of OpenAPI."""

from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress import field_docs, validation
from serve_app.ingress.door import Door, ErrorResponse, OpenApiDocument, ValidationError
from serve_app.ingress.native.examples import body_examples
from serve_app.ingress.native.rerun import RERUN_FORMATS
from serve_app.ingress.native.routes import router
from serve_app.ingress.native.schemas import (
    WIRE_NAMES,
    GenerateRequest,
    NestedConfig,
    RefineRequest,
    extension_fields,
)
from serve_app.ingress.openapi import branch_of_type

_REQUESTS: dict[str, type[BaseModel]] = {"/generate": GenerateRequest, "/refine": RefineRequest}
_NESTED: dict[str, type[BaseModel]] = {
    "config": NestedConfig,
    **{to_camel(field): entry for field, entry in extension_fields(GenerateRequest).items()},
}
_PROMPTS = {
    "GenerateRequest": ("prompt", "negativePrompt"),
    "RefineRequest": ("prompt", "refinePrompt", "negativePrompt"),
}


def error_body(error: ErrorResponse, request_id: str) -> dict[str, Any]:
    """Return the JSON of an error, as `ErrorEnvelope` describes it."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "details": [{"path": path, "message": problem} for path, problem in error.details],
            "requestId": request_id,
        }
    }


def field_error(error: ValidationError, route: str) -> tuple[str, str]:
    """Return the path of a wrong field and its problem, with the nearest name of a known field."""
    path, problem = validation.field_error(error, route)
    request, location = _REQUESTS.get(route), error["loc"]
    if request is None or error["type"] != "extra_forbidden":
        return path, problem
    schema = _NESTED.get(str(location[1]), request) if len(location) > 2 else request
    near = validation.nearest(str(location[-1]), map(to_camel, schema.model_fields))
    return path, f"{problem}; did you mean {near}?" if near else problem


def describe(document: OpenApiDocument, info: ServiceInfo) -> None:
    """Write the limits of this service's checkpoints and the digest of its terms."""
    schemas = document["components"]["schemas"]
    terms = schemas["TermsAcceptance"]["properties"]
    for name in ("termsDigest", "terms"):
        branch_of_type(terms[name], "string")["const"] = info.terms_digest
    for schema, fields in _PROMPTS.items():
        for field in fields:
            prompt = branch_of_type(schemas[schema]["properties"][field], "string")
            prompt["maxLength"] = info.max_prompt_chars
    sizes = [model.sizes for model in info.models]
    for side in ("width", "height"):
        branch_of_type(schemas["GenerateRequest"]["properties"][side], "integer").update(
            minimum=min(rules.min_side for rules in sizes),
            maximum=max(rules.max_side for rules in sizes),
            multipleOf=8,
        )


NATIVE = Door(
    router=router,
    error_body=error_body,
    field_error=field_error,
    wire_names=WIRE_NAMES,
    field_docs=field_docs.NATIVE,
    body_examples=body_examples,
    describe=describe,
    rerun_formats=RERUN_FORMATS,
)
