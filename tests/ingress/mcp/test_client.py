"""The official SDK's client, unmodified, over the demo: both eras of the protocol."""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.app import open_doors
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from tests.support.api import make_api
from tests.support.demo_api import demo_info
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.mcp_client import mcp_client

KEYED = AccessPolicy(keys=digests(["a-key"]))
KEY = {"Authorization": "Bearer a-key"}
Connect = Callable[[], AbstractAsyncContextManager[Client]]
PROMPT = "a large yellow star on a black background"
STAR = {"prompt": PROMPT, "seed": 7, "steps": 12, "width": 128, "height": 96}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Yield the address of a service with a key and one replica of both stages."""
    info = demo_info()
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    replica = StageReplica(cpu_stage(sources, max_loaded_models=2, max_batch_images=4))
    stage = LocalStage(replica)
    maker = Conductor(stage, stage, info.models)
    api = make_api(maker, Ledger(None), info, KEYED, doors=open_doors(mcp=True))
    with serving(api) as served:
        yield served
    replica.close()


@pytest.fixture(params=["auto", "legacy"])
def connect(address: str, request: pytest.FixtureRequest) -> Connect:
    return partial(mcp_client, address, "a-key", request.param)


def blocks(result: CallToolResult, kind: type[Any]) -> list[Any]:
    return [block for block in result.content if isinstance(block, kind)]


def job(result: CallToolResult) -> dict[str, Any]:
    found: dict[str, Any] = (result.meta or {})["aura-serve/job"]
    return found


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(file)).convert("RGB")).astype(int)


def is_a_yellow_star(image: Any) -> bool:
    is_yellow = (image[..., :2].min(axis=-1) > 180) & (image[..., 2] < 140)
    is_black = image.max(axis=-1) < 60
    return bool(is_yellow.mean() > 0.05 and is_black.mean() > 0.5)


async def test_it_lists_tools_that_say_what_they_take(connect: Connect) -> None:
    async with connect() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["generate", "refine", "job_status", "cancel_job", "list_models"]
        for tool in tools.values():
            assert tool.description
            assert not {"$ref", "$defs", "anyOf"} & set(str(tool.input_schema).split("'"))
            assert all(field["description"] for field in tool.input_schema["properties"].values())
        assert tools["generate"].input_schema["required"] == ["prompt"]
        assert tools["generate"].input_schema["properties"]["model"]["enum"] == ["demo"]
        assert tools["job_status"].annotations is not None
        assert tools["job_status"].annotations.read_only_hint


async def test_it_draws_with_progress_a_small_image_and_a_link(connect: Connect) -> None:
    async with connect() as client:
        notes: list[tuple[float, float | None, str | None]] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            notes.append((progress, total, message))

        result = await client.call_tool("generate", STAR, progress_callback=note)
        assert not result.is_error
        output = job(result)
        (image,) = output["images"]
        assert (image["seed"], output["width"], output["height"]) == (7, 128, 96)
        (small,), (link,) = blocks(result, ImageContent), blocks(result, ResourceLink)
        assert small.mime_type == "image/jpeg"
        assert is_a_yellow_star(pixels(b64decode(small.data)))
        assert link.uri == image["url"]
        async with httpx.AsyncClient() as http:
            png = await http.get(link.uri)
        assert (png.headers["content-type"], len(png.content)) == ("image/png", link.size)
        assert is_a_yellow_star(pixels(png.content))
        (text,) = blocks(result, TextContent)
        assert link.uri in text.text
        taken = [progress for progress, _, _ in notes]
        assert taken == sorted(set(taken))
        assert len(taken) >= 2
        assert {total for _, total, _ in notes} == {12}
        assert all(message and output["job_id"] in message for _, _, message in notes)


async def test_it_changes_an_image_of_an_earlier_job(connect: Connect, address: str) -> None:
    async with connect() as client:
        made = await client.call_tool("generate", STAR)
        changes = {"prompt": "a large red heart on a white background", "seed": 3, "strength": 0.9}
        of_job = await client.call_tool("refine", {**changes, "job_id": job(made)["job_id"]})
        async with httpx.AsyncClient(headers=KEY) as http:
            first = (await http.get(job(made)["images"][0]["url"])).content
            changed = (await http.get(job(of_job)["images"][0]["url"])).content
            of_file = await client.call_tool(
                "refine", {**changes, "image": b64encode(first).decode()}
            )
            again = (await http.get(job(of_file)["images"][0]["url"])).content
        assert not np.array_equal(pixels(first), pixels(changed))
        assert np.array_equal(pixels(changed), pixels(again))


async def test_the_image_is_that_of_the_native_route(connect: Connect, address: str) -> None:
    async with connect() as client:
        made = await client.call_tool("generate", STAR)
        body = STAR | {"imageCount": 1}
        async with httpx.AsyncClient(headers=KEY) as http:
            by_link = (await http.get(job(made)["images"][0]["url"])).content
            native = (await http.post(f"{address}/generate", json=body)).json()["images"][0]
        assert np.array_equal(pixels(by_link), pixels(b64decode(native)))


async def test_who_does_not_wait_asks_for_the_job(connect: Connect) -> None:
    async with connect() as client:
        started = await client.call_tool("generate", {**STAR, "wait_seconds": 0})
        assert job(started)["state"] == "running"
        assert not blocks(started, ImageContent)
        id = job(started)["job_id"]
        done = await client.call_tool("job_status", {"job_id": id, "wait_seconds": 30})
        assert job(done)["state"] == "succeeded"
        assert is_a_yellow_star(pixels(b64decode(blocks(done, ImageContent)[0].data)))


async def test_a_job_is_cancelled(connect: Connect) -> None:
    async with connect() as client:
        started = await client.call_tool("generate", {**STAR, "steps": 150, "wait_seconds": 0})
        id = job(started)["job_id"]
        cancelled = await client.call_tool("cancel_job", {"job_id": id})
        assert job(cancelled)["state"] == "cancelled"
        refused = await client.call_tool("refine", {"prompt": "a heart", "job_id": id})
        assert refused.is_error
        assert (refused.meta or {})["aura-serve/error"]["code"] == "VALIDATION_ERROR"


async def test_it_lists_models(connect: Connect) -> None:
    async with connect() as client:
        listed = (await client.call_tool("list_models", {})).structured_content
        (model,) = listed["models"]
        assert (model["name"], model["is_default"], model["native_size"]) == ("demo", True, 128)
        assert "dpmpp_2m_karras" in listed["samplers"]
        assert "16:9" in listed["aspect_ratios"]


async def test_an_unknown_tool_is_an_error_of_the_protocol(connect: Connect) -> None:
    async with connect() as client:
        with pytest.raises(MCPError, match="there are generate, refine"):
            await client.call_tool("draw", {})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_wrong_key_is_refused_in_words(address: str, mode: str) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(MCPError, match="the API key is missing or wrong"), flatten_subgroups=True
    ):
        async with mcp_client(address, "another", mode):
            pass
