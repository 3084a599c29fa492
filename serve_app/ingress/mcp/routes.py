"""POST /mcp: one JSON-RPC message of the Model Context Protocol, over streamable HTTP.

There are no sessions, so that any ingress process answers any request: GET and DELETE, which are
about a session's stream, are 405, as the protocol wants.
"""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from serve_app.ingress.accept import JSON
from serve_app.ingress.door import route_name
from serve_app.ingress.mcp.rerun import PATH
from serve_app.ingress.mcp.server import McpResponse
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.services import Services
from serve_app.ingress.sse import EVENT_STREAM
from serve_app.ingress.strict_json import StrictRoute


class JsonRpcMessage(BaseModel):
    """A request or a notification (JSON-RPC 2.0)."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | None = None
    params: dict[str, Any] | None = None


class JsonRpcError(BaseModel):
    """Why there is no answer."""

    code: int
    message: str
    data: Any = None


class JsonRpcErrorResponse(BaseModel):
    """A refusal: `data` has the service's own code, details and request id."""

    jsonrpc: Literal["2.0"]
    id: int | str | None
    error: JsonRpcError


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, as JSON or as an event after events of progress",
        "content": {
            JSON: {"schema": {"type": "object"}},
            EVENT_STREAM: {"schema": {"type": "string"}},
        },
    },
    202: {"description": "A notification, which has no answer", "content": {}},
}
_ERRORS = error_responses(400, 401, 403, 404, 406, 413, 415, 503, model=JsonRpcErrorResponse)

router = APIRouter(route_class=StrictRoute, tags=["MCP"], generate_unique_id_function=route_name)


@router.post(PATH, responses=_ANSWERS | _ERRORS, response_model=None)
async def call_tool(body: JsonRpcMessage, request: Request, services: Services) -> Response:
    """Take a message of the Model Context Protocol."""
    return McpResponse(services, await request.body())
