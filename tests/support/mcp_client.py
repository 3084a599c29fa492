"""Ways to call the MCP door: the official client, and bare HTTP."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

MCP = "/mcp"
ACCEPT = {"Accept": "application/json, text/event-stream"}


@asynccontextmanager
async def mcp_client(
    address: str, key: str | None = None, mode: str = "auto"
) -> AsyncIterator[Client]:
    """Yield the SDK's own client; `mode` is auto or legacy, which has a handshake."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{address}{MCP}", http_client=http), mode=mode) as client,
    ):
        yield client


def tool_call(tool: str, arguments: Mapping[str, Any], **params: Any) -> dict[str, Any]:
    """Return the JSON-RPC request that calls a tool."""
    params |= {"name": tool, "arguments": dict(arguments)}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


def messages_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the JSON-RPC messages of an answer, which are events or one JSON body."""
    if answer.headers["content-type"].startswith("application/json"):
        return [answer.json()]
    lines = re.split(r"\r\n|\n|\r", answer.text)  # splitlines() knows more ends than events have
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


async def call(
    http: httpx.AsyncClient, tool: str, arguments: Mapping[str, Any], **params: Any
) -> dict[str, Any]:
    """Call a tool over bare HTTP and return its result."""
    answer = await http.post(MCP, json=tool_call(tool, arguments, **params), headers=ACCEPT)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = messages_of(answer)[-1]["result"]
    return result


def job_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says of its job, for programs."""
    assert not result["isError"], result
    job: dict[str, Any] = result["_meta"]["aura-serve/job"]
    return job


def error_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says of why the call failed, for programs."""
    assert result["isError"], result
    error: dict[str, Any] = result["_meta"]["aura-serve/error"]
    return error
