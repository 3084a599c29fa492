"""`Door`: one HTTP API of the service, with its routes, its error shape and its description.

A door translates its wire form into the values of `generation.py`, and results into its wire
form. Doors never import each other. To add one, write its schemas and its `Door`, and add it to
`DOORS` in `app.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.field_docs import FieldDoc
from serve_app.ingress.generation_job import RerunFormat

OpenApiDocument = dict[str, Any]
ValidationError = Mapping[str, Any]  # an entry of pydantic's `errors()`


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error as it will be answered; `details` are pairs of a field's path and its problem."""

    status: int
    code: str
    message: str
    details: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_final: bool = False  # sending the request again can't help


def route_name(route: APIRoute) -> str:
    """Return the name of a route, which is its operation's id in the description."""
    return str(route.name)


def _unchanged(document: OpenApiDocument, info: ServiceInfo) -> None:
    """Leave the description as FastAPI makes it."""


def _no_examples(info: ServiceInfo) -> Mapping[str, Mapping[str, Any]]:
    """Leave the bodies without examples."""
    return {}


@dataclass(frozen=True, slots=True)
class Door:
    """One HTTP API: what it serves, and how it words and shapes its errors.

    `error_body(error, request_id)` is the JSON of an error. `field_error(error, route)` turns what
    pydantic found wrong with a body into the field's path and a sentence. `wire_names` maps the
    domain's fields to the door's own names. `field_docs` are the meanings of its request fields,
    and `body_examples(info)` the OpenAPI examples of its bodies, by path and name. `rerun_formats`
    are those of its routes, without options.
    `describe(document, info)` completes the door's part of the OpenAPI document in place.
    """

    router: APIRouter
    error_body: Callable[[ErrorResponse, str], dict[str, Any]]
    field_error: Callable[[ValidationError, str], tuple[str, str]]
    wire_names: Mapping[str, str] = field(default_factory=dict)
    field_docs: Mapping[str, FieldDoc] = field(default_factory=dict)
    body_examples: Callable[[ServiceInfo], Mapping[str, Mapping[str, Any]]] = _no_examples
    describe: Callable[[OpenApiDocument, ServiceInfo], None] = _unchanged
    rerun_formats: tuple[RerunFormat, ...] = ()

    def serves(self, path: str) -> bool:
        """Return whether a route of this door has the path, whatever the method."""
        scope = {"type": "http", "method": "GET", "path": path}
        return any(route.matches(scope)[0] is not Match.NONE for route in self.router.routes)

    def covers(self, path: str) -> bool:
        """Return whether the path lies below the prefix of this door's routes."""
        return bool(self.router.prefix) and path.startswith(f"{self.router.prefix}/")


def find_door(doors: Sequence[Door], path: str) -> Door:
    """Return the door with a route for the path, else the one that covers it, else the first."""
    for door in doors:
        if door.serves(path):
            return door
    return next((door for door in doors if door.covers(path)), doors[0])


def allowed_methods(routers: Iterable[APIRouter], path: str) -> list[str]:
    """Return the methods that the routes of a path take, sorted; HEAD wherever GET is."""
    scope = {"type": "http", "method": "GET", "path": path}
    routes = (route for router in routers for route in router.routes)
    matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in getattr(route, "methods", ())}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
