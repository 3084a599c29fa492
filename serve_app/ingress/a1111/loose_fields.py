"""Numbers and switches that may come in another type, as the web UI takes them.

Its clients send numbers as text, and 0 or 1 for a switch. The description says so, since code that
is generated from it checks requests by it.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from serve_app.core.diffusion.spec import SEED_RANGE
from serve_app.ingress.fields import Range

_Schema = dict[str, Any]
_TEXT: _Schema = {"type": "string"}
_BELOW_ZERO: _Schema = {"type": "number", "exclusiveMaximum": 0}
_ZERO_OR_ONE: _Schema = {"type": "number", "enum": [0, 1]}


@dataclass(frozen=True, slots=True)
class Forms:
    """Other forms of a field in the description, behind its own type."""

    schemas: tuple[_Schema, ...]

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> _Schema:
        described = handler(schema)
        return {"anyOf": [*described.get("anyOf", [described]), *self.schemas]}


@dataclass(frozen=True, slots=True)
class LooseNumber:
    """A number that may be text, and no boolean, which would be read as 0 or 1."""

    @staticmethod
    def check(value: Any) -> Any:
        """Return the value; raise pydantic's error for a boolean."""
        if isinstance(value, bool):
            raise PydanticCustomError("number", "must be a number")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> _Schema:
        return Forms((_TEXT,)).__get_pydantic_json_schema__(schema, handler)


def _seed(value: Any) -> Any:
    """Return None for the web UI's random seeds, which are below 0."""
    if isinstance(value, int | float) and value < 0:
        return None
    return None if value in ("", "-1") else value


Seed = Annotated[
    Annotated[int, Range(*SEED_RANGE)] | None,
    BeforeValidator(_seed),
    Forms((_BELOW_ZERO,)),
    LooseNumber(),
]
Switch = Annotated[bool | None, Forms((_ZERO_OR_ONE, _TEXT))]
