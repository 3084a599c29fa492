"""Refusals and answers that are alike at every door: one table of situations, each through all.

A door has its own wire form and its own error shape. What is refused, with which status, code and
headers, and which pixels come, is the same.
"""

import asyncio
import base64
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.api import Client
from tests.support.demo_api import demo_client
from tests.support.door_situations import LOCAL, PLAIN, REQUESTS, LocalSituation, Situation
from tests.support.doors import DOORS, OPEN, WITH_KEYS, check_alike
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor
from tests.support.ledgers import AwayLedger
from tests.support.mcp_client import ACCEPT, MCP, job_of, messages_of, tool_call

Pixels = np.ndarray[Any, Any]
SITUATIONS: dict[str, Situation] = {**REQUESTS, **LOCAL}


def maker_of(situation: Situation) -> FakeConductor:
    """Return a maker in the state of the situation."""
    if not isinstance(situation, LocalSituation):
        return FakeConductor()
    failure = situation.failure
    maker = FakeConductor() if failure is None else FailingConductor(failure, at=0)
    maker.refusal = situation.refusal
    return maker


@pytest.mark.parametrize("name", SITUATIONS)
async def test_every_door_refuses_alike(client: Client, name: str) -> None:
    situation = SITUATIONS[name]
    refusals = []
    for door_name, door in DOORS.items():
        if name in door.skipped:
            continue
        info = replace(INFO, **situation.info)
        http = client(maker_of(situation), info=info, **OPEN, **situation.options)
        if situation.is_second:
            await door.send(http, situation)
        answer = await door.send(http, situation)
        refusal = door.read(answer)
        found = refusal.status, refusal.code
        assert found == (situation.status, situation.code), (door_name, answer.text)
        assert refusal.parts == door.parts
        refusal.check_consistency()
        assert answer.headers["x-request-id"]
        assert "secret" not in answer.text
        refusals.append(refusal)
    assert len(refusals) > 1
    check_alike(refusals)


@pytest.mark.parametrize("name", WITH_KEYS)
async def test_one_key_with_another_body_is_a_conflict_at_every_door(
    client: Client, name: str
) -> None:
    door, http = DOORS[name], client(FakeConductor(), **OPEN)
    of_seed = [
        Situation(422, "IDEMPOTENCY_CONFLICT", {"seed": seed}, headers={"Idempotency-Key": "k"})
        for seed in (1, 2)
    ]
    first = await door.send(http, of_seed[0])
    assert door.succeeded(first), first.text
    again = await door.send(http, of_seed[0])
    assert again.content == first.content
    refusal = door.read(await door.send(http, of_seed[1]))
    assert (refusal.status, refusal.code) == (of_seed[1].status, of_seed[1].code)


@pytest.mark.parametrize("name", DOORS)
async def test_without_the_ledger_a_picture_comes_through_every_door(
    client: Client, name: str
) -> None:
    away: Any = AwayLedger()
    answer = await DOORS[name].send(client(ledger=away, **OPEN), PLAIN)
    assert DOORS[name].succeeded(answer), answer.text


async def test_a_picture_with_equal_meaning_has_the_same_pixels_through_every_door() -> None:
    prompt = "a large yellow star on a black background"
    bodies = {
        "/generate": {
            "prompt": prompt,
            "negativePrompt": "a blue circle",
            "seed": 7,
            "steps": 12,
            "guidanceScale": 5,
            "sampler": "dpmpp_2m_karras",
            "imageCount": 1,
            "width": 128,
            "height": 96,
        },
        "/v1/images/generations": {
            "prompt": prompt,
            "negative_prompt": "a blue circle",
            "seed": 7,
            "num_inference_steps": 12,
            "guidance_scale": 5,
            "sampler": "dpmpp_2m_karras",
            "size": "128x96",
        },
        "/sdapi/v1/txt2img": {
            "prompt": prompt,
            "negative_prompt": "a blue circle",
            "seed": 7,
            "steps": 12,
            "cfg_scale": 5,
            "sampler_name": "DPM++ 2M",
            "scheduler": "Karras",
            "width": 128,
            "height": 96,
        },
        MCP: tool_call(
            "generate",
            {
                "prompt": prompt,
                "negative_prompt": "a blue circle",
                "seed": 7,
                "steps": 12,
                "guidance_scale": 5,
                "sampler": "dpmpp_2m_karras",
                "width": 128,
                "height": 96,
            },
        ),
    }
    async with demo_client(mcp=True) as http:
        images = await asyncio.gather(*(_drawn(http, *sent) for sent in bodies.items()))
        base, heart = _plain_png(images[0]), {"prompt": "a red heart", "seed": 3}
        edits = {
            "/refine": {"images": [base], "strength": 0.5, "imageCount": 1, **heart},
            "/sdapi/v1/img2img": {"init_images": [base], "denoising_strength": 0.5, **heart},
            MCP: tool_call("refine", {"image": base, "strength": 0.5, **heart}),
        }
        changed = await asyncio.gather(*(_drawn(http, *sent) for sent in edits.items()))
    assert len(images) == len(DOORS)
    assert all(np.array_equal(image, images[0]) for image in images)
    assert all(np.array_equal(image, changed[0]) for image in changed)
    assert not np.array_equal(images[0], changed[0])


async def _drawn(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Pixels:
    """Return the image that a request makes, whichever way its door gives it."""
    answer = await http.post(path, json=body, headers=ACCEPT if path == MCP else {})
    if path == MCP:
        result = messages_of(answer)[-1]["result"]
        file = (await http.get(job_of(result)["images"][0]["url"])).content
    else:
        found = answer.json()
        text = found["data"][0]["b64_json"] if "data" in found else found["images"][0]
        file = base64.b64decode(text)
    return np.asarray(Image.open(BytesIO(file)))


def _plain_png(pixels: Pixels) -> str:
    """Return an image without its record, which one door would add to its prompt."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_there_are_more_than_thirty_situations() -> None:
    assert len(SITUATIONS) >= 30
