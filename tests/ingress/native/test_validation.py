"""What /generate and /refine refuse, by the name of the field."""

from typing import Any

import pytest

from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.pictures import picture

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {}, "prompt", "is required"),
    ("/generate", {"prompt": "   "}, "prompt", "must not be empty"),
    ("/generate", {"prompt": "a" * 501}, "prompt", "must have at most 500 characters"),
    ("/generate", {"temperature": 7}, "temperature", "must be between 0 and 2, got 7"),
    ("/generate", {"steps": 151}, "steps", "must be between 1 and 150, got 151"),
    ("/generate", {"steps": True}, "steps", "must be a whole number"),
    ("/generate", {"steps": "20"}, "steps", "must be a whole number"),
    ("/generate", {"guidanceScale": 20.5}, "guidanceScale", "must be between 0 and 20, got 20.5"),
    (
        "/generate",
        {"guidanceInterval": [5.42, 0.28]},
        "guidanceInterval",
        "must be two noise levels, the lower one first, got 5.42 and 0.28",
    ),
    ("/generate", {"guidanceInterval": [1]}, "guidanceInterval", "must have at least 2 entries"),
    (
        "/generate",
        {"guidanceInterval": [1, 2, 3]},
        "guidanceInterval",
        "must have at most 2 entries",
    ),
    (
        "/generate",
        {"guidanceInterval": [-1, 2]},
        "guidanceInterval.0",
        "must be between 0 and 10000, got -1",
    ),
    ("/refine", {"guidanceInterval": 3}, "guidanceInterval", "must be a list"),
    ("/refine", {"cache": "on"}, "cache", "must be one of off, deepcache"),
    ("/generate", {"seed": -1}, "seed", "must be between 0 and 4294967295, got -1"),
    ("/generate", {"imageCount": 9}, "imageCount", "must be between 1 and 8, got 9"),
    ("/generate", {"handoff": 1.5}, "handoff", "must be between 0 and 1, got 1.5"),
    (
        "/generate",
        {"timeoutSeconds": 0},
        "timeoutSeconds",
        "must be above 0 and at most 3600, got 0",
    ),
    ("/generate", {"sampler": "plms"}, "sampler", "must be one of euler, euler_karras, "),
    ("/generate", {"aspectRatio": "7:5"}, "aspectRatio", "must be one of Auto, 1:1"),
    ("/generate", {"stepz": 20}, "stepz", "is not a field of this request; did you mean steps?"),
    ("/generate", {"colour": 1}, "colour", "is not a field of this request"),
    ("/generate", {"width": 512}, "height", "is required when width is given"),
    ("/generate", {"width": 512, "height": 500}, "height", "must be a multiple of 8 between 256"),
    ("/generate", {"prompt": 7}, "prompt", "must be a string"),
    ("/generate", {"temperature": -0.1}, "temperature", "must be between 0 and 2, got -0.1"),
    (
        "/generate",
        {"temperature": 2.0000000001},
        "temperature",
        "must be between 0 and 2, got 2.0000000001",
    ),
    ("/generate", {"temperature": True}, "temperature", "must be a number"),
    ("/generate", {"temperature": "7"}, "temperature", "must be a number"),
    ("/generate", {"steps": 20.0}, "steps", "must be a whole number"),
    (
        "/generate",
        {"seed": 12345678901234},
        "seed",
        "must be between 0 and 4294967295, got 12345678901234",
    ),
    (
        "/generate",
        {"seed": 10**400},
        "seed",
        f"must be between 0 and 4294967295, got 1{'0' * 39}…",
    ),
    (
        "/generate",
        {"width": 10**300, "height": 512},
        "width",
        f"must be a multiple of 8 between 256 and 2048, got 1{'0' * 39}…",
    ),
    ("/generate", {"x" * 100_000: 1}, "x" * 40 + "…", "is not a field of this request"),
    ("/generate", {"loras": [{"weight": 1}]}, "loras.0.name", "is required"),
    (
        "/generate",
        {"loras": [{"name": "a", "wieght": 1}]},
        "loras.0.wieght",
        "did you mean weight?",
    ),
    (
        "/generate",
        {"width": 2048, "height": 2048},
        "width",
        "times height must be at most 2400000, got 4194304",
    ),
    ("/refine", {"prompt": "a"}, "baseImages", "is required, or images instead"),
    (
        "/refine",
        {"prompt": "a", "images": ["a"], "baseImages": ["a"]},
        "baseImages",
        "cannot be combined with images",
    ),
    ("/refine", {"images": ["!"]}, "refinePrompt", "is required, or prompt instead"),
    ("/refine", {"images": [], "prompt": "a"}, "images", "must have at least 1 entry"),
    ("/refine", {"images": ["a"] * 9, "prompt": "a"}, "images", "must have at most 8 entries"),
    (
        "/refine",
        {"baseImages": ["a", 7], "prompt": "a"},
        "baseImages.1",
        "must be a string",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "strength": 0},
        "strength",
        "must be above 0 and at most 1, got 0",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "strength": 1.5},
        "strength",
        "must be above 0 and at most 1, got 1.5",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "config": {"guidanceScal": 1}},
        "config.guidanceScal",
        "is not a field of this request; did you mean guidanceScale?",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "config": {"steps": 0}},
        "config.steps",
        "must be between 1 and 150, got 0",
    ),
    (
        "/refine",
        {"images": [picture(256, 256)], "prompt": "a", "steps": 9, "config": {"steps": 8}},
        "config.steps",
        "is 8, but steps is 9",
    ),
]


@pytest.mark.parametrize(("route", "body", "path", "sentence"), BAD)
async def test_a_bad_field_is_named_with_its_range(
    client: Client,
    conductor: FakeConductor,
    route: str,
    body: dict[str, Any],
    path: str,
    sentence: str,
) -> None:
    if route == "/generate" and body:
        body = {"prompt": "a"} | body
    answer = await client().post(route, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "VALIDATION_ERROR"
    assert sentence in error["message"]
    assert error["details"][0]["path"] == path
    assert sentence in f"{path} {error['details'][0]['message']}"
    assert error["requestId"] == answer.headers["x-request-id"]
    assert not conductor.calls


async def test_a_flood_of_wrong_fields_gets_a_short_answer(client: Client) -> None:
    wrong = {f"x{i}": "secret" * 100 for i in range(5000)}
    answer = await client().post("/generate", json=wrong)
    assert answer.status_code == 400
    assert len(answer.content) < 10_000
    assert "secret" not in answer.text


async def test_a_config_gets_no_suggestion_of_fields_it_does_not_have(client: Client) -> None:
    body = {"images": ["a"], "prompt": "a", "config": {"strenght": 0.5}}
    answer = await client().post("/refine", json=body)
    assert "did you mean" not in answer.text


async def test_a_prompt_is_measured_after_trimming(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": " " * 50 + "a" * 500 + "\n"})
    assert answer.status_code == 201
    assert conductor.specs[0].prompt == "a" * 500


async def test_an_image_that_is_none_is_refused_by_number(client: Client) -> None:
    body = {"images": [picture(256, 256), "bm9uZQ=="], "prompt": "a"}
    answer = await client().post("/refine", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_IMAGE"
    assert "image 1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "sd-2"])
async def test_an_unknown_model_gets_the_list_and_is_not_repeated(
    client: Client, name: str
) -> None:
    body = {"images": [picture(256, 256)], "prompt": "a", "config": {"modelPath": name}}
    for route, request in (("/refine", body), ("/generate", {"prompt": "a", "model": name})):
        answer = await client().post(route, json=request)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "MODEL_NOT_FOUND"
        assert "sdxl-base-1.0" in error["message"]
        assert name not in error["message"]
