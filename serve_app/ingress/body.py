"""A JSON body, read so that it can mean one thing only.

Knows no routes. Python's own reader takes the last of two equal names; here they are an error.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response


class BadJson(HTTPException):
    """The body is no JSON that can be read in only one way; the detail says why."""

    def __init__(self, why: str) -> None:
        super().__init__(400, why)


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body's value. Raises `BadJson`."""
        try:
            return json.loads(await self.body(), object_pairs_hook=_each_once)
        except BadJson:
            raise
        except RecursionError:
            raise BadJson("the body is nested too deeply") from None
        except ValueError:  # not JSON, not UTF-8, or a number with thousands of digits
            raise BadJson("the body is not valid JSON") from None


class StrictRoute(APIRoute):
    """A route whose body is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadJson("a name stands twice in one object of the body")
    return value
