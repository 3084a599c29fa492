"""A body of the type that its route takes, and JSON read so that it can mean one thing only.

Knows no routes. A page of another origin may post text and forms without asking first, but not
JSON: so nothing is read as JSON that does not say that it is. Python's own reader takes the last
of two equal names, and knows NaN; here both are errors.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serve_app.core.errors import UnsupportedMediaType

JSON = "application/json"
_PARTED_BY = (b",", b"[", b"{")  # a small body can be made of millions of parts, each an object
_MOST_PARTS = 20_000  # two prompts of 8000 characters may be commas all over


class BadJson(HTTPException):
    """The body is no JSON that can be read in only one way; the detail says why.

    No named error of the domain: while it reads a body, FastAPI lets only its own kind through.
    """

    def __init__(self, why: str) -> None:
        super().__init__(400, why)


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body's value. Raises `BadJson`."""
        body = await self.body()
        if sum(map(body.count, _PARTED_BY)) > _MOST_PARTS:
            raise BadJson("the body has more parts than any request needs")
        try:
            text = body.decode("utf-8-sig")  # some editors put a mark in front
            value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
            if "\\u" in text:
                json.dumps(value, ensure_ascii=False).encode()
        except BadJson:
            raise
        except UnicodeEncodeError:
            raise BadJson("a text of the body has half a character in it") from None
        except RecursionError:
            raise BadJson("the body is nested too deeply") from None
        except ValueError:  # not JSON, not UTF-8, or a number with thousands of digits
            raise BadJson("the body is not valid JSON") from None
        return value


class StrictRoute(APIRoute):
    """A route whose body is read strictly: JSON, or what its own description says."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()
        described = (self.openapi_extra or {}).get("requestBody", {}).get("content", {JSON: {}})
        (taken,) = described

        async def strictly(request: Request) -> Response:
            if request.method == "POST" and _media_type(request) != taken:
                raise UnsupportedMediaType(f"the body must be {taken}")
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadJson("a name stands twice in one object of the body")
    return value


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _no_number(name: str) -> Any:
    raise BadJson(f"{name} is no number in JSON")
