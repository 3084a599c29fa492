"""Bodies of the media type that their route takes, and JSON that has one meaning only.

A page of another origin may post text and forms without a preflight, but not JSON, so nothing is
read as JSON unless its Content-Type says so. Python's own reader takes the last of two equal keys
and accepts NaN; both are errors here.
"""

import json
from collections.abc import Callable, Collection, Coroutine
from inspect import signature
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from serve_app.ingress.accept import JSON, negotiate
from serve_app.ingress.access import PROBE_ROUTES
from serve_app.ingress.http_errors import InvalidJson, UnsupportedMediaType
from serve_app.ingress.json_files import JsonFiles

_SEPARATORS = (b",", b"[", b"{")  # a small body may consist of millions of objects
_MAX_SEPARATORS = 20_000  # two prompts of 8000 characters may be all commas


class _StrictRequest(Request):
    """A request whose `json()` is read strictly, once."""

    async def json(self) -> Any:
        """Return the body's value. Raises `InvalidJson`."""
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json

    async def read_files(self, fields: Collection[str]) -> None:
        """Read the body, in whose fields are lists of files. Raises `InvalidJson`.

        Afterwards `json()` has an `InputFile` at the place of each, and `body()` is not the body.
        """
        files, start = JsonFiles(fields), b""
        async for piece in self.stream():
            files.feed(piece)
            start = start or piece[:1]
        self._body = start  # FastAPI only asks whether there is any
        if start:
            self._json = files.finish(parse_json)


class StrictRoute(APIRoute):
    """A route whose body is read strictly: JSON, or the media type of its own description.

    A route without a body takes none, whatever is sent: pages of other origins are refused before.
    The body is read before FastAPI does, which would hide our errors behind its own. A request that
    accepts nothing of what the route's description says it returns is refused before any work; a
    probe never is, since orchestrators send all kinds of headers.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()
        described = (self.openapi_extra or {}).get("requestBody", {}).get("content", {JSON: {}})
        (accepted,) = described
        takes_body = self.body_field is not None or self.openapi_extra is not None
        offers, file_fields = _offers(self), _file_fields(self)

        async def handle_strictly(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            if offers and request.state.path not in PROBE_ROUTES:
                negotiate(request, offers)
            if request.method == "POST" and takes_body:
                if _media_type(request) != accepted:
                    raise UnsupportedMediaType(f"the body must be {accepted}")
                if file_fields:
                    await strict.read_files(file_fields)
                elif accepted == JSON and await strict.body():
                    await strict.json()
            return await handle(strict)

        return handle_strictly


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises `InvalidJson` where two readers could differ."""
    if sum(map(body.count, _SEPARATORS)) > _MAX_SEPARATORS:
        raise InvalidJson(f"the body has more than {_MAX_SEPARATORS} values")
    try:
        text = body.decode("utf-8-sig")  # some editors put a byte order mark in front
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_reject_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidJson("a string contains an unpaired surrogate") from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except ValueError:  # not JSON, not UTF-8, or a number with thousands of digits
        raise InvalidJson("the body is not valid JSON") from None
    return value


def _file_fields(route: APIRoute) -> frozenset[str]:
    """Return the fields of a route's JSON body that are lists of files; see `ApiModel`."""
    body = signature(route.endpoint).parameters.get("body")
    return getattr(body.annotation, "file_fields", frozenset()) if body else frozenset()


def _offers(route: APIRoute) -> tuple[str, ...]:
    """Return the media types of a route's successful responses: JSON, unless it has none."""
    if route.status_code == 204:
        return ()
    described = (
        response.get("content", {})
        for status, response in route.responses.items()
        if str(status).startswith("2")
    )
    kinds = [kind for content in described for kind in content]
    has_json = route.response_model is not None or not kinds
    return tuple(dict.fromkeys([*([JSON] if has_json else []), *kinds]))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise InvalidJson("duplicate key in a JSON object")
    return value


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _reject_constant(name: str) -> Any:
    raise InvalidJson(f"{name} is not a JSON number")
