"""Refusals and answers that are alike at every door: one table of situations, each through all.

A door has its own wire form and its own error shape. What is refused, with which status, code and
headers, and which pixels come, is the same.
"""

import asyncio
import base64
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.api import Client
from tests.support.demo_api import demo_client
from tests.support.door_situations import LOCAL, PLAIN, REQUESTS, LocalSituation, Situation
from tests.support.doors import DOORS, OPEN, WITH_KEYS, check_alike
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor
from tests.support.ledgers import AwayLedger

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
    }
    async with demo_client() as http:
        answers = await asyncio.gather(
            *(http.post(path, json=body) for path, body in bodies.items())
        )
        images = [_first_image(answer.json()) for answer in answers]
        refined = await asyncio.gather(
            *(
                http.post(path, json=body)
                for path, body in {
                    "/refine": {
                        "images": [_plain_png(images[0])],
                        "prompt": "a red heart",
                        "strength": 0.5,
                        "seed": 3,
                        "imageCount": 1,
                    },
                    "/sdapi/v1/img2img": {
                        "init_images": [_plain_png(images[0])],
                        "prompt": "a red heart",
                        "denoising_strength": 0.5,
                        "seed": 3,
                    },
                }.items()
            )
        )
        changed = [_first_image(answer.json()) for answer in refined]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert np.array_equal(changed[0], changed[1])
    assert not np.array_equal(images[0], changed[0])


def _first_image(body: dict[str, Any]) -> np.ndarray[Any, Any]:
    text = body["data"][0]["b64_json"] if "data" in body else body["images"][0]
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def _plain_png(pixels: np.ndarray[Any, Any]) -> str:
    """Return an image without its record, which one door would add to its prompt."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_there_are_more_than_thirty_situations() -> None:
    assert len(SITUATIONS) >= 30
