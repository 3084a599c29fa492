"""The MCP door through Serve's proxy: the official client draws; who leaves frees the engine."""

import httpx
import pytest

from tests.support.mcp_client import ACCEPT, MCP, mcp_client, tool_call
from tests.support.service import LONG, Service
from tests.support.waiting import until

pytestmark = pytest.mark.ray


async def test_an_assistant_draws_and_hears_of_progress(service: Service) -> None:
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with mcp_client(service.address) as client:
        arguments = {"prompt": LONG["prompt"], "seed": LONG["seed"], "steps": LONG["steps"]}
        result = await client.call_tool("generate", arguments, progress_callback=note)
    (image,) = (result.meta or {})["aura-serve/job"]["images"]
    async with httpx.AsyncClient() as http:
        assert (await http.get(image["url"])).headers["content-type"] == "image/png"
    assert steps == sorted(set(steps))
    assert len(steps) > 3


def test_a_client_that_leaves_frees_the_engine(service: Service) -> None:
    until(lambda: not service.is_busy("base"))
    before = service.counts("base")["cancelled"]
    arguments = {"prompt": LONG["prompt"], "steps": 150, "image_count": 4}
    message = tool_call("generate", arguments, _meta={"progressToken": "p"})
    address = f"{service.address}{MCP}"
    with httpx.stream("POST", address, json=message, headers=ACCEPT, timeout=60) as answer:
        next(line for line in answer.iter_lines() if ": step " in line)
    until(lambda: not service.is_busy("base"))
    assert service.counts("base")["cancelled"] - before >= 1
