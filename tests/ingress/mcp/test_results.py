"""Results as clients of each kind understand them, and what a job's state is called."""

import asyncio
from base64 import b64decode
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OutOfMemory
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.mcp.messages import without_file
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor, WaitingConductor
from tests.support.mcp_client import ACCEPT, MCP, call, error_of, job_of, messages_of, tool_call
from tests.support.waiting import until_async

DRAW = {"prompt": "a fox"}


@pytest.mark.parametrize(
    ("version", "kinds"),
    [
        (None, ["text", "image"]),  # no header: 2025-03-26, which has no links in results
        ("2025-03-26", ["text", "image"]),
        ("2025-06-18", ["text", "image", "resource_link"]),
        ("2025-11-25", ["text", "image", "resource_link"]),
    ],
)
async def test_a_client_gets_blocks_that_its_version_has_and_the_link_in_any_case(
    client: Client, version: str | None, kinds: list[str]
) -> None:
    headers = ACCEPT | ({"MCP-Protocol-Version": version} if version else {})
    message = tool_call("generate", DRAW)
    answer = await client(mcp=True).post(MCP, json=message, headers=headers)
    result = messages_of(answer)[-1]["result"]
    assert [block["type"] for block in result["content"]] == kinds
    assert job_of(result)["images"][0]["url"] in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("generate", DRAW),
        ("generate", {}),
        ("job_status", {"job_id": "x"}),
        ("list_models", {"x": 1}),
    ],
)
async def test_a_result_with_images_and_an_error_have_no_structured_content(
    client: Client, tool: str, arguments: dict[str, Any]
) -> None:
    """Claude Code shows a model nothing else; TypeScript's SDK holds errors against the schema."""
    assert "structuredContent" not in await call(client(mcp=True), tool, arguments)


async def test_null_is_absent(client: Client, conductor: FakeConductor) -> None:
    nothing = dict.fromkeys(["image_count", "loras", "wait_seconds", "aspect_ratio", "seed"])
    assert len(job_of(await call(client(mcp=True), "generate", DRAW | nothing))["images"]) == 1
    assert conductor.specs[0].width == conductor.specs[0].height == 1024


async def test_more_loras_than_an_image_may_have_are_refused_unread(client: Client) -> None:
    many = {f"lora-{number}": "wrong" for number in range(9)}
    error = error_of(await call(client(mcp=True), "generate", DRAW | {"loras": many}))
    assert [detail["path"] for detail in error["details"]] == ["loras"]


@pytest.mark.parametrize(("count", "side"), [(1, 512), (2, 512), (3, 384), (8, 256)])
async def test_many_images_are_shown_smaller(client: Client, count: int, side: int) -> None:
    result = await call(client(mcp=True), "generate", DRAW | {"image_count": count})
    files = [b64decode(block["data"]) for block in result["content"] if block["type"] == "image"]
    assert [Image.open(BytesIO(file)).size for file in files] == [(side, side)] * count


async def test_a_job_that_takes_too_long_goes_on_and_is_found_by_its_id(client: Client) -> None:
    maker = WaitingConductor()
    http = client(maker, mcp=True)
    begun = await call(http, "generate", DRAW | {"wait_seconds": 0.05, "image_count": 2})
    job = job_of(begun)
    assert job["state"] == "running"
    for number, task in enumerate(maker.tasks):
        maker.outlooks[task.id] = Outlook(Stage.BASE, 7 + number, 20, eta=9.04)
    found = job_of(await call(http, "job_status", {"job_id": job["job_id"]}))
    assert found["state"] == "running"
    waiting = asyncio.create_task(
        call(http, "job_status", {"job_id": job["job_id"], "wait_seconds": 30})
    )
    maker.go.set()
    done = job_of(await waiting)
    assert (done["state"], len(done["images"])) == ("succeeded", 2)
    assert maker.cancelled == 0
    assert not any(maker.watched.values())  # no previews are made for whom none is sent


async def test_the_progress_of_a_job_is_that_of_each_image(client: Client) -> None:
    maker = WaitingConductor()
    http = client(maker, mcp=True)
    begun = await call(http, "generate", DRAW | {"wait_seconds": 0, "image_count": 2})
    await until_async(lambda: len(maker.tasks) == 2)
    for number, task in enumerate(maker.tasks):
        maker.outlooks[task.id] = Outlook(Stage.BASE, 7 + number, 20, eta=9.04)
    arguments = {"job_id": job_of(begun)["job_id"], "wait_seconds": 0.05}
    found = await call(http, "job_status", arguments)
    assert [(image["number"], image["step"]) for image in job_of(found)["progress"]] == [
        (0, 7),
        (1, 8),
    ]
    assert {image["eta_seconds"] for image in job_of(found)["progress"]} == {9.0}
    assert "Image 1: step 8 of 20, about 9 s left." in found["content"][0]["text"]
    maker.go.set()


async def test_a_job_that_is_cancelled_or_fails_says_so_to_whoever_waits(client: Client) -> None:
    maker = WaitingConductor()
    http = client(maker, mcp=True)
    id = job_of(await call(http, "generate", DRAW | {"wait_seconds": 0}))["job_id"]
    await maker.begun.wait()
    waiting = asyncio.create_task(call(http, "job_status", {"job_id": id, "wait_seconds": 30}))
    cancelled = await call(http, "cancel_job", {"job_id": id})
    assert job_of(cancelled)["state"] == job_of(await waiting)["state"] == "cancelled"
    assert "was cancelled" in cancelled["content"][0]["text"]
    failing = client(FailingConductor(OutOfMemory("no room"), at=0), mcp=True)
    id = job_of(await call(failing, "generate", DRAW | {"wait_seconds": 0}))["job_id"]
    failed = await call(failing, "job_status", {"job_id": id, "wait_seconds": 30})
    assert (job_of(failed)["state"], job_of(failed)["error"]["code"]) == ("failed", "OUT_OF_MEMORY")


async def test_an_image_of_a_job_that_runs_is_waited_for(client: Client) -> None:
    maker = WaitingConductor()
    http = client(maker, mcp=True)
    id = job_of(await call(http, "generate", DRAW | {"wait_seconds": 0}))["job_id"]
    await maker.begun.wait()
    changing = asyncio.create_task(call(http, "refine", {"prompt": "a red fox", "job_id": id}))
    maker.go.set()
    assert job_of(await changing)["state"] == "succeeded"
    assert [spec.prompt for spec in maker.specs] == ["a fox", "a red fox"]


def test_a_file_is_taken_out_of_a_message_before_the_sdk_keeps_it() -> None:
    message = tool_call("refine", {"prompt": "a fox", "image": "aGk="})
    small, file = without_file(message)
    assert file is not None
    assert file.take("image") == b"hi"
    assert b"aGk=" not in small
    for other in ({"prompt": "a"}, {"image": 5}):
        assert without_file(tool_call("refine", other))[1] is None
    assert without_file({"params": {"arguments": []}})[1] is None


@pytest.mark.parametrize("id", [None, True, 1.5])
async def test_an_id_that_is_none_is_no_notification(client: Client, id: Any) -> None:
    message = {"jsonrpc": "2.0", "id": id, "method": "ping"}
    answer = await client(mcp=True).post(MCP, json=message, headers=ACCEPT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32600)


async def test_an_address_with_a_slash_at_its_end_is_the_same(client: Client) -> None:
    answer = await client(mcp=True).post(
        f"{MCP}/", json=tool_call("list_models", {}), headers=ACCEPT
    )
    assert not messages_of(answer)[-1]["result"]["isError"]
