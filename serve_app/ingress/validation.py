"""What pydantic found wrong with a body, as sentences that name the field and its range.

Knows no routes but to suggest a field's right name. What was sent is never repeated at length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from serve_app.ingress.errors import MAX_DETAILS, ErrorResponse, shown
from serve_app.ingress.native.schemas import (
    GenerateRequest,
    LoraField,
    RefineConfig,
    RefineRequest,
    near_field,
)

_MODELS: dict[str, type[BaseModel]] = {
    "/generate": GenerateRequest,
    "/refine": RefineRequest,
}
_INSIDE: dict[str, type[BaseModel]] = {"config": RefineConfig, "loras": LoraField}
_NOTHING = "body"  # the path of what is wrong with the body as a whole


def validation_error_response(errors: Sequence[Mapping[str, Any]], route: str) -> ErrorResponse:
    """The refusal of a body with these errors."""
    problems = [field_error(error, route) for error in errors[:MAX_DETAILS]]
    path, sentence = problems[0]
    return ErrorResponse(400, "VALIDATION_ERROR", f"{path} {sentence}", problems)


def field_error(error: Mapping[str, Any], route: str) -> tuple[str, str]:
    """Path and sentence of one error."""
    path = shown(".".join(map(str, error["loc"][1:]))) or _NOTHING
    kind = error["type"]
    if kind == "extra_forbidden":
        return path, "is no field of this request" + _suggestion(error["loc"], route)
    if kind == "missing":
        return path, "is required"
    if kind == "string_too_short":
        return path, "must not be empty"
    if kind == "string_too_long":
        return path, f"must have at most {error['ctx']['max_length']} characters"
    if kind in ("too_long", "too_short"):
        at, count = ("most", "max_length") if kind == "too_long" else ("least", "min_length")
        number = error["ctx"][count]
        return path, f"must have at {at} {number} {'entry' if number == 1 else 'entries'}"
    said = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return path, said[0].lower() + said[1:]


def _suggestion(where: Sequence[Any], route: str) -> str:
    model = _MODELS.get(route)
    if model is None:
        return ""
    inside = _INSIDE.get(str(where[1]), model) if len(where) > 2 else model
    near = near_field(inside, str(where[-1]))
    return f"; did you mean {near}?" if near else ""
