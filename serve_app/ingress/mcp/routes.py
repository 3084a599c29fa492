"""POST /mcp: one JSON-RPC message of the Model Context Protocol, over streamable HTTP.

There are no sessions, so that any ingress process answers any request: GET and DELETE, which are
about a session's stream, are 405, as the protocol wants.
"""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, model_validator
from starlette.responses import Response

from serve_app.ingress.accept import JSON
from serve_app.ingress.door import route_name
from serve_app.ingress.mcp.messages import without_file
from serve_app.ingress.mcp.rerun import PATH
from serve_app.ingress.mcp.server import McpResponse
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.services import Services
from serve_app.ingress.sse import stream_response
from serve_app.ingress.strict_json import StrictRoute


class JsonRpcMessage(BaseModel):
    """A request or a notification (JSON-RPC 2.0)."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    jsonrpc: Literal["2.0"]
    method: str
    id: StrictStr | StrictInt | None = None
    params: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_no_null_id(cls, message: Any) -> Any:
        """Refuse an id that is null: its sender waits for an answer, which a notification lacks."""
        if isinstance(message, dict) and "id" in message and message["id"] is None:
            raise ValueError("must not have the id null")
        return message


class _Described(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class WrongField(_Described):
    """A part of a message that is wrong."""

    path: str
    """Where it stands, with dots between names."""
    message: str
    """What is wrong with it."""


class JsonRpcErrorData(_Described):
    """What this service says beside JSON-RPC."""

    code: str
    """The stable code of the error."""
    details: list[WrongField]
    """The parts that are wrong."""
    request_id: str
    """Id of the HTTP request, as in the log."""


class JsonRpcError(_Described):
    """Why there is no answer."""

    code: int
    """The code that JSON-RPC has for it, else -32000."""
    message: str
    """What was wrong, and what helps."""
    data: JsonRpcErrorData | Any = None
    """What this service says beside that; absent where the protocol's own check refused."""


class JsonRpcErrorResponse(_Described):
    """A refusal of a message before its method was called."""

    jsonrpc: Literal["2.0"]
    """The version of JSON-RPC."""
    id: str | int | None
    """That of the message, or null if it was not read."""
    error: JsonRpcError
    """Why it was refused."""


_EVENTS = stream_response(
    "Progress, if the message has a `progressToken`, and at last the answer",
    ("message",),
    "A JSON-RPC message.",
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, as JSON or as an event after events of progress",
        "content": {
            JSON: {"schema": {"type": "object"}},
            **_EVENTS["content"],
        },
    },
    202: {"description": "A notification, which has no answer", "content": {}},
}
_ERRORS = error_responses(400, 401, 403, 404, 406, 413, 415, 503, model=JsonRpcErrorResponse)

router = APIRouter(route_class=StrictRoute, tags=["MCP"], generate_unique_id_function=route_name)


@router.post(f"{PATH}/", include_in_schema=False)
@router.post(PATH, responses=_ANSWERS | _ERRORS, response_model=None)
async def call_tool(body: JsonRpcMessage, request: Request, services: Services) -> Response:
    """Take a message of the Model Context Protocol."""
    message, request.state.file = without_file(await request.json())
    return McpResponse(services, message)
