"""Clients of the MCP door that leave in the middle: what ran for them ends, and nothing is left."""

import re
from typing import Any

import pytest

from tests.support.mcp_client import ACCEPT, MCP, tool_call
from tests.support.raw_streams import raw_stream
from tests.support.sleeping_service import sleeping_service
from tests.support.waiting import first_match

FOX = {"prompt": "a fox", "width": 256, "height": 256, "steps": 30, "refine": False}
PROGRESS = {"_meta": {"progressToken": "p"}}
MODERN = "2026-07-28"
ERAS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "handshake": ({"MCP-Protocol-Version": "2025-06-18"}, {}),
    "modern": (
        {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "generate"},
        {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    ),
}


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_leaves_frees_the_engine_within_a_step(era: str) -> None:
    headers, meta = ERAS[era]
    message = tool_call("generate", FOX, _meta={"progressToken": "p", **meta})
    async with sleeping_service(2, images=1) as service:
        rest = await service.at_rest()
        begun = await service.engine()
        async with raw_stream(service.ports[0], "POST", MCP, message, ACCEPT | headers) as stream:
            await stream.until(b": step ")
            steps = (await service.engine()).steps
        engine = await first_match(service.engine, lambda engine: not engine.positions)
        assert engine.steps - steps <= 2
        assert engine.cancelled - begun.cancelled == 1
        await service.nothing_is_left_since(rest)


async def test_a_job_that_nobody_waits_for_outlives_its_call() -> None:
    message = tool_call("generate", {**FOX, "wait_seconds": 0})
    async with sleeping_service(0.2, images=1) as service:
        async with raw_stream(service.ports[0], "POST", MCP, message, ACCEPT) as stream:
            found = (await stream.rest()).decode()
        id = re.findall(r'"job_id": ?"(\w+)"', found)[0]
        ask = tool_call("job_status", {"job_id": id, "wait_seconds": 30})
        async with raw_stream(service.ports[1], "POST", MCP, ask, ACCEPT) as stream:
            assert b'"succeeded"' in await stream.rest()  # through the other process


async def test_a_job_is_cancelled_through_another_process() -> None:
    message = tool_call("generate", FOX, **PROGRESS)
    async with sleeping_service(2, images=1) as service:
        async with raw_stream(service.ports[0], "POST", MCP, message, ACCEPT) as stream:
            id = re.findall(rb"job (\w+):", await stream.until(b": step "))[0].decode()
            cancel = tool_call("cancel_job", {"job_id": id})
            async with raw_stream(service.ports[1], "POST", MCP, cancel, ACCEPT) as cancelling:
                assert b'"cancelled"' in await cancelling.rest()
            assert b"CANCELLED" in await stream.rest()
        await first_match(service.engine, lambda engine: not engine.positions)
