"""The SDK's server for one request: lists the tools, and runs one and answers its errors.

Nothing is kept between requests, so each has a server and a transport of its own: when it ends,
or its client leaves, all that ran for it is cancelled.
"""

import json
import logging
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.errors import respond, respond_to_exception
from serve_app.ingress.mcp import output
from serve_app.ingress.mcp.definitions import TOOLS, about
from serve_app.ingress.mcp.tools import Call
from serve_app.ingress.services import ApiServices
from serve_app.ingress.validation import validation_error_response

# They note the begin and the end of each session, which is here each request.
for _name in ("streamable_http_manager", "streamable_http"):
    logging.getLogger(f"mcp.server.{_name}").setLevel(logging.WARNING)


class McpResponse(Response):
    """The response to a JSON-RPC message, which the SDK writes."""

    def __init__(self, services: ApiServices, message: bytes) -> None:
        super().__init__()
        self._services = services
        self._message = message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        body: list[Message] = [{"type": "http.request", "body": self._message, "more_body": False}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        # Hosts and origins have been checked by `AccessPolicy`, whose lists know more patterns
        # than the SDK's own check, and the length of the body by `BodyLimitMiddleware`.
        manager = StreamableHTTPSessionManager(
            make_server(self._services), stateless=True, max_request_body_size=sys.maxsize
        )
        async with manager.run():
            await manager.handle_request(scope, replay, send)


def make_server(services: ApiServices) -> Server[dict[str, Any]]:
    """Return the SDK's server over our tools."""
    info = services.info

    async def list_tools(
        context: ServerRequestContext, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return _listed_tools(info)

    async def call_tool(
        context: ServerRequestContext, params: CallToolRequestParams
    ) -> CallToolResult:
        return await _call(services, context, params)

    def no_header_schema(name: str) -> Mapping[str, Any] | None:
        """Return None: no argument of a tool comes in a header."""
        return None

    return Server(
        "aura-serve",
        version=services.version,
        title="Aura Serve",
        instructions=about(info),
        get_tool_input_schema=no_header_schema,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


@lru_cache(maxsize=1)  # ten milliseconds of the event loop, and always the same
def _listed_tools(info: ServiceInfo) -> ListToolsResult:
    return ListToolsResult(tools=[tool.described(name, info) for name, tool in TOOLS.items()])


async def _call(
    services: ApiServices, context: ServerRequestContext, params: CallToolRequestParams
) -> CallToolResult:
    """Run a tool. What it raises is the call's answer; an unknown name is the protocol's error."""
    tool = TOOLS.get(params.name)
    if tool is None:
        raise MCPError(INVALID_PARAMS, f"there is no such tool; there are {', '.join(TOOLS)}")
    request = context.request
    assert isinstance(request, Request)
    call = Call(services, request, context.session, context.protocol_version)
    try:
        arguments = tool.arguments.model_validate(params.arguments or {})
        return await tool.run(call, arguments)
    except ValidationError as error:
        return _refused(_invalid_arguments(error, request))
    except Exception as error:
        owed = services.conductor.owed_seconds()
        return _refused(respond_to_exception(error, request.scope["state"], owed))


def _invalid_arguments(error: ValidationError, request: Request) -> JSONResponse:
    problems = [
        {**problem, "loc": ("arguments", *problem["loc"])}
        for problem in error.errors(include_url=False, include_input=False)
    ]
    state = request.scope["state"]
    return respond(validation_error_response(problems, state["door"], state["path"]), state)


def _refused(response: JSONResponse) -> CallToolResult:
    error = json.loads(bytes(response.body))["error"]
    headers, status = response.headers, response.status_code
    is_final = headers.get("x-should-retry") == "false" or 400 <= status < 429
    return output.refused(error, status, headers.get("retry-after"), is_final=is_final)
