"""What an image of the MCP door says of how it was made: a tool call that makes it again."""

import base64
import hashlib
import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.api import Client
from tests.support.demo_api import demo_client
from tests.support.fake_conductor import FakeConductor
from tests.support.mcp_client import ACCEPT, MCP, call, job_of, messages_of


async def png_of(http: httpx.AsyncClient, result: dict[str, Any]) -> Image.Image:
    link = job_of(result)["images"][0]["url"]
    return Image.open(BytesIO((await http.get(link)).content))


async def sent_again(http: httpx.AsyncClient, record: dict[str, Any]) -> Image.Image:
    answer = await http.post(record["route"], json=record["request"], headers=ACCEPT)
    return await png_of(http, messages_of(answer)[-1]["result"])


async def test_the_request_in_an_image_makes_it_again() -> None:
    arguments = {
        "prompt": "a large yellow star on a black background",
        "negative_prompt": "a blue circle",
        "sampler": "dpmpp_2m_karras",
        "guidance_scale": 5,
        "steps": 8,
        "aspect_ratio": "3:2",
    }
    async with demo_client(mcp=True) as http:
        made = await png_of(http, await call(http, "generate", arguments))
        record = json.loads(made.info["aura"])
        again = await sent_again(http, record)
    assert record["route"] == MCP
    assert np.array_equal(np.asarray(made), np.asarray(again))
    assert json.loads(again.info["aura"])["request"] == record["request"]


async def test_a_changed_image_says_its_strength_and_not_its_file(
    client: Client, conductor: FakeConductor
) -> None:
    caller = client(mcp=True)
    first = await call(caller, "generate", {"prompt": "a fox"})
    id = job_of(first)["job_id"]
    arguments = {"prompt": "a red fox", "job_id": id, "strength": 0.4, "seed": 3}
    changed = await png_of(caller, await call(caller, "refine", arguments))
    record = json.loads(changed.info["aura"])
    params = record["request"]["params"]
    assert (params["name"], params["arguments"]["strength"]) == ("refine", 0.4)
    assert not {"job_id", "image", "width"} & params["arguments"].keys()
    assert conductor.specs[-1].prompt == "a red fox"


async def test_the_small_image_says_as_much_as_the_whole_one() -> None:
    arguments = {"prompt": "a large yellow star", "steps": 4, "width": 256, "height": 128}
    async with demo_client(mcp=True) as http:
        result = await call(http, "generate", arguments)
    (block,) = (block for block in result["content"] if block["type"] == "image")
    jpeg = base64.b64decode(block["data"])
    assert Image.open(BytesIO(jpeg)).size == (256, 128)
    assert b"trainedAlgorithmicMedia" in jpeg  # a machine made it: IPTC's DigitalSourceType


async def test_a_large_image_is_made_small(client: Client) -> None:
    arguments = {"prompt": "a fox", "width": 1344, "height": 768}
    result = await call(client(mcp=True), "generate", arguments)
    (block,) = (block for block in result["content"] if block["type"] == "image")
    small = Image.open(BytesIO(base64.b64decode(block["data"])))
    assert small.size == (512, 293)
    assert (job_of(result)["width"], job_of(result)["height"]) == (1344, 768)


async def test_an_image_of_a_job_is_chosen_by_its_number(client: Client) -> None:
    caller = client(mcp=True)
    drawn = await call(caller, "generate", {"prompt": "a fox", "image_count": 2, "seed": 7})
    made = job_of(drawn)
    assert [image["seed"] for image in made["images"]] == [7, 8]
    second = (await caller.get(made["images"][1]["url"])).content
    arguments = {"prompt": "a red fox", "job_id": made["job_id"], "image_number": 1}
    changed = await png_of(caller, await call(caller, "refine", arguments))
    digest = hashlib.sha256(second).hexdigest()
    assert json.loads(changed.info["aura"])["baseImage"] == {"sha256": digest}
