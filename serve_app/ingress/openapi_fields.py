"""Meaning, limits, default and example of every request field, in the OpenAPI document.

The limits and the default are written behind the meaning, as people read them. A default stands
there alone: generators of TypeScript types demand a field whose schema has one.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.door import Door, OpenApiDocument, find_door
from serve_app.ingress.field_docs import FieldDoc, service_examples

_Schema = dict[str, Any]


def complete_fields(document: OpenApiDocument, doors: Sequence[Door], info: ServiceInfo) -> None:
    """Complete every request field and body in place, by the docs and examples of its door."""
    examples, finished = service_examples(info), set[int]()
    for path, methods in document["paths"].items():
        door = find_door(doors, path)
        bodies = door.body_examples(info)
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if path in bodies:
                    content["examples"] = bodies[path]
                for name, field in _fields(content["schema"], document, finished):
                    _complete(field, door.field_docs.get(name), examples.get(name))
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}).values():
            _drop_titles(field)


def _fields(
    schema: _Schema, document: OpenApiDocument, finished: set[int]
) -> Iterator[tuple[str, _Schema]]:
    """Yield name and schema of every field below a schema, each once."""
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    if id(schema) in finished:
        return
    finished.add(id(schema))
    for name, field in schema.get("properties", {}).items():
        yield name, field
        yield from _fields(field, document, finished)
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from _fields(inner, document, finished)


def _complete(field: _Schema, doc: FieldDoc | None, example: Any) -> None:
    _drop_titles(field)
    if doc is not None:
        field.setdefault("description", doc.meaning)
        example = doc.example if example is None else example
    if example is not None:
        field.setdefault("examples", [example])
    facts = _limits(field)
    if "default" in field:
        facts.append(f"Default: {_shown(field.pop('default'))}.")
    field["description"] = " ".join([field.get("description", ""), *facts]).strip()


def _limits(field: _Schema) -> list[str]:
    """Return sentences on a field's range and length; null apart."""
    (schema, *_) = [s for s in field.get("anyOf", [field]) if s.get("type") != "null"]
    sentences = []
    if "exclusiveMinimum" in schema:
        low, high = schema["exclusiveMinimum"], schema["maximum"]
        sentences.append(f"Range: above {low:.10g}, at most {high:.10g}.")
    elif "minimum" in schema:
        sentences.append(f"Range: {schema['minimum']:.10g} to {schema['maximum']:.10g}.")
    if "multipleOf" in schema:
        sentences.append(f"In multiples of {schema['multipleOf']}.")
    if "maxLength" in schema:
        sentences.append(f"At most {schema['maxLength']} characters.")
    if "maxItems" in schema:
        sentences.append(f"{schema.get('minItems', 0)} to {schema['maxItems']} entries.")
    return sentences


def _shown(value: Any) -> str:
    """Return a default as it is written in JSON; `none` for an empty list."""
    return "none" if value == [] else f"`{json.dumps(value)}`"


def _drop_titles(field: _Schema) -> None:
    """Drop the titles that pydantic makes of names: in generated code they hide the meaning."""
    field.pop("title", None)
    for inner in (*field.get("anyOf", ()), field.get("items")):
        if inner:
            inner.pop("title", None)
