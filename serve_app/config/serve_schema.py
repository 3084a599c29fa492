"""What Serve would refuse or silently ignore in a serve config, by a JSON Schema of its keys.

The schema is generated from Ray's own (`scripts/generate_serve_schema.py`) and checked in, so that
a file is checked before Ray starts, and where Ray does not run. No Ray.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

Location = tuple[str | int, ...]  # keys and list positions, from the top of the file
_TYPES = {
    "object": "a section with keys",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "empty",
}
_BOUNDS = {
    "minimum": "must be at least {}",
    "exclusiveMinimum": "must be above {}",
    "maximum": "must be at most {}",
    "minLength": "must have at least {} characters",
}


@dataclass(frozen=True, slots=True)
class SchemaError:
    """One thing wrong; an unknown key comes with the keys that its section knows."""

    location: Location
    problem: str
    known_keys: tuple[str, ...] = ()

    @property
    def is_unknown_key(self) -> bool:
        """Whether the last part of the location is a key that the section does not know."""
        return bool(self.known_keys)


def schema_errors(config: Mapping[str, Any]) -> Iterator[SchemaError]:
    """Yield everything that the schema finds wrong, in the order of the file."""
    yield from _errors(Draft202012Validator(_schema()).iter_errors(config))


def sections() -> dict[Location, tuple[str, ...]]:
    """Return the keys of the file, of its sections, and of an application; by location."""
    properties = _schema()["properties"]
    keys: dict[Location, tuple[str, ...]] = {(): tuple(properties)}
    for name in ("applications", "http_options", "logging_config", "tracing_config"):
        keys[name,] = tuple(_section(properties[name])["properties"])
    return keys


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return schema


def _section(node: dict[str, Any]) -> dict[str, Any]:
    """Return the section that a node of the schema refers to, through lists and alternatives."""
    node = node.get("items", node)
    node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
    section: dict[str, Any] = _schema()["$defs"][node["$ref"].rpartition("/")[2]]
    return section


def _errors(found: Iterator[ValidationError]) -> Iterator[SchemaError]:
    for error in found:
        location = tuple(error.absolute_path)
        section: Any = error.schema
        instance: Any = error.instance
        expected: Any = error.validator_value
        match error.validator:
            case "additionalProperties":
                known = tuple(section["properties"])
                for key in instance:
                    if key not in known:
                        yield SchemaError((*location, str(key)), "unknown key", known)
            case "required":
                for key in expected:
                    if key not in instance:
                        yield SchemaError((*location, key), "is missing")
            case "anyOf":  # of a value and null, or a number and a name: the first that it is
                options: dict[Any, list[ValidationError]] = {}
                for inner in error.context or ():
                    options.setdefault(inner.relative_schema_path[0], []).append(inner)
                chosen = next((o for o in options.values() if not _is_of_another_type(o)), None)
                yield from _errors(iter(chosen or options[0]))
            case "type":
                yield SchemaError(location, f"must be {_TYPES[expected]}{_got(instance)}")
            case "enum":
                names = ", ".join(map(str, expected))
                yield SchemaError(location, f"must be one of {names}{_got(instance)}")
            case bound:
                problem = _BOUNDS[str(bound)].format(expected)
                if bound == "minLength" and expected == 1:
                    problem = "must not be empty"
                yield SchemaError(location, f"{problem}{_got(instance)}")


def _is_of_another_type(errors: list[ValidationError]) -> bool:
    """Return whether an alternative was not meant at all."""
    return any(error.validator == "type" and not error.path for error in errors)


def _got(value: Any) -> str:
    """Return what was found, where that is short enough to be shown."""
    return f", got {value!r}" if isinstance(value, (str, int, float)) else ""
