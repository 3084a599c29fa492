"""What the cloud's model can't follow is listed by the names of the fields that were sent."""

import base64
import json
from typing import Any

import httpx
import pytest

from tests.support.cloud_caller import Caller
from tests.support.gemini_stand_in import picture

PROMPT = {"prompt": "a harbour in fog"}
BASE = base64.b64encode(picture(size=(512, 640))).decode()
TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
IMAGES: dict[str, dict[str, Any]] = {
    "/refine": {"images": [BASE], "imageCount": 1},
    "/generate": {"imageCount": 1},
    IMG2IMG: {"init_images": [BASE]},
}


async def ignored_fields(caller: Caller, route: str, fields: dict[str, Any]) -> list[str]:
    """Return the fields that the answer's warning lists, in its order."""
    async with caller() as client:
        if route == EDITS:
            file = {"image": ("a.png", picture(size=(512, 640)), "image/png")}
            answer = await client.post(route, data=PROMPT | fields, files=file)
        else:
            answer = await client.post(route, json=PROMPT | IMAGES.get(route, {}) | fields)
    assert answer.is_success, answer.text
    beginning = "ignored, since gemini has no such setting: "
    texts = [text for text in warnings_of(route, answer) if text.startswith("ignored")]
    for text in texts:
        assert text.startswith(beginning)
        assert text in answer.headers["x-aura-warning"]
    return [field for text in texts for field in text.removeprefix(beginning).split(", ")]


def warnings_of(route: str, answer: httpx.Response) -> list[str]:
    body = answer.json()
    if route in (TXT2IMG, IMG2IMG):
        body = json.loads(body["info"])
    elif route in IMAGES:
        body = body["meta"]
    warnings: list[str] = body["warnings"]
    return warnings


NATIVE: dict[str, Any] = {
    "seed": 7,
    "steps": 12,
    "guidanceScale": 3,
    "guidanceInterval": [0.3, 5.0],
    "sampler": "heun",
    "cache": "deepcache",
    "negativePrompt": "rain",
    "loras": [{"name": "of-no-file"}],
    "handoff": 0.5,
}
A1111: dict[str, Any] = {
    "seed": 7,
    "negative_prompt": "rain",
    "steps": 20,
    "cfg_scale": 7,
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "refiner_switch_at": 0.5,
}


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/generate", NATIVE | {"refine": True, "temperature": 1, "resolution": "standard"}),
        ("/refine", NATIVE | {"strength": 0.4}),
        (TXT2IMG, A1111),
        (IMG2IMG, A1111 | {"denoising_strength": 0.4}),
        (TXT2IMG, {"sampler_index": "Euler a"}),
        (TXT2IMG, {"scheduler": "Karras"}),
        (
            GENERATIONS,
            {
                "seed": 7,
                "negative_prompt": "rain",
                "num_inference_steps": 12,
                "quality": "high",
                "guidance_scale": 3,
                "guidanceInterval": [0.3, 5.0],
                "cache": "deepcache",
                "sampler": "heun",
                "refine": True,
                "handoff": 0.5,
                "loras": [{"name": "of-no-file"}],
                "temperature": 1,
            },
        ),
        (GENERATIONS, {"negativePrompt": "rain", "steps": 12, "guidanceScale": 3}),
        (EDITS, {"seed": "7", "strength": "0.4", "quality": "low"}),
    ],
)
async def test_the_fields_that_were_sent_are_listed_by_the_names_of_their_door(
    caller: Caller, route: str, fields: dict[str, Any]
) -> None:
    assert sorted(await ignored_fields(caller, route, fields)) == sorted(fields)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/generate", {"refine": False, "negativePrompt": "", "loras": [], "handoff": 0.8}),
        ("/generate", {"temperature": 0.8, "resolution": "high", "aspectRatio": "3:2"}),
        ("/refine", {"strength": 0.6, "resizeMode": "pad"}),
        (TXT2IMG, {"seed": -1, "negative_prompt": "", "sampler_name": "", "steps": None}),
        (TXT2IMG, {"scheduler": "Automatic", "refiner_checkpoint": "None", "width": 512}),
        (IMG2IMG, {}),
        (IMG2IMG, {"sampler_name": "Automatic", "denoising_strength": 0.75, "resize_mode": 2}),
        (GENERATIONS, {"quality": "auto", "size": "1024x1536", "seed": None, "handoff": None}),
        (EDITS, {"quality": "medium", "resizeMode": "stretch"}),
    ],
)
async def test_what_asks_for_nothing_or_is_followed_is_not_listed(
    caller: Caller, route: str, fields: dict[str, Any]
) -> None:
    assert await ignored_fields(caller, route, fields) == []


async def test_settings_of_the_nested_form_are_listed_where_they_stand(caller: Caller) -> None:
    nested = {"config": {"steps": 12, "guidanceScale": 3}}
    for route in ("/generate", "/refine"):
        listed = await ignored_fields(caller, route, nested)
        assert listed == ["config.steps", "config.guidanceScale"]


@pytest.mark.parametrize("route", ["/generate", "/refine", TXT2IMG, IMG2IMG, GENERATIONS, EDITS])
async def test_loras_that_stand_in_the_prompt_are_listed_as_such(
    caller: Caller, route: str
) -> None:
    fields = {"prompt": "a harbour <lora:ink:0.8>"}
    assert await ignored_fields(caller, route, fields) == ["LoRAs in the prompt"]
