"""Every door draws through the cloud's model: what it is sent, and what callers get back."""

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.core.service.metrics import CLOUD_CALLS, IMAGE_DURATION, IMAGES, InMemoryMeter
from serve_app.ingress.containers import png
from serve_app.ingress.metadata.record import RECORD
from tests.support.cloud_caller import Caller
from tests.support.fake_conductor import FakeConductor
from tests.support.gemini_stand_in import MODEL, GeminiStandIn, image_part, made, picture

PROMPT = {"prompt": "a harbour in fog"}
BODY = {**PROMPT, "imageCount": 1}


def images_of(answer: httpx.Response) -> list[Image.Image]:
    """Return the images of a native response."""
    assert answer.status_code == 201, answer.text
    return [opened(text) for text in answer.json()["images"]]


def opened(text: str) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def config_of(gemini: GeminiStandIn) -> dict[str, Any]:
    config: dict[str, Any] = gemini.calls[-1].body["generationConfig"]["imageConfig"]
    return config


async def test_generate_makes_its_images_in_the_cloud_where_no_local_model_is_configured(
    caller: Caller, gemini: GeminiStandIn, local: FakeConductor, meter: InMemoryMeter
) -> None:
    async with caller() as client:
        answer = await client.post("/generate", json=PROMPT)
    first, second = images_of(answer)
    assert (first.format, first.size, first.getpixel((0, 0))) == ("PNG", (96, 64), (255, 165, 0))
    assert second.size == (96, 64)
    assert len(gemini.calls) == 2
    assert not local.calls
    meta = answer.json()["meta"]
    assert (meta["model"], meta["width"], meta["height"]) == (MODEL, 96, 64)
    assert meta["seeds"] is meta["steps"] is meta["guidanceScale"] is meta["sampler"] is None
    assert meta["refined"] is False
    (notice,) = meta["warnings"]
    assert notice.startswith("prompts and input images are sent to Google's cloud")
    assert meter.times(IMAGES, outcome="made", model="gemini") == 2
    assert meter.times(IMAGE_DURATION, model="gemini") == 2
    assert meter.times(CLOUD_CALLS, outcome="answered") == 2


async def test_the_call_has_the_prompt_in_the_frontends_sense_and_wants_an_image_alone(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as client:
        await client.post("/generate", json=BODY)
    (call,) = gemini.calls
    ((text,),) = [list(part.values()) for part in call.parts]
    assert "conveys this mood: a harbour in fog." in text
    assert "Leave out all text" in text
    assert call.body["generationConfig"]["responseModalities"] == ["IMAGE"]
    assert config_of(gemini) == {"imageSize": "1K"}  # Auto: the model chooses


@pytest.mark.parametrize(
    ("fields", "aspect"),
    [
        ({"aspectRatio": "21:9"}, "21:9"),
        ({"aspectRatio": "4:5"}, "4:5"),
        ({"width": 832, "height": 1216}, "2:3"),
        ({"width": 1024, "height": 1024}, "1:1"),
    ],
)
async def test_the_aspect_ratio_is_that_of_the_request_or_nearest_to_its_size(
    caller: Caller, gemini: GeminiStandIn, fields: dict[str, Any], aspect: str
) -> None:
    async with caller() as client:
        answer = await client.post("/generate", json=BODY | fields)
    assert config_of(gemini)["aspectRatio"] == aspect
    has_size = "width" in fields
    warning = f"of the size the aspect ratio counts alone, here {aspect}"
    assert (warning in answer.json()["meta"]["warnings"]) == has_size


async def test_the_size_of_the_images_is_the_operators_choice(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller(image_size="2K") as client:
        await client.post("/generate", json=BODY)
    assert config_of(gemini) == {"imageSize": "2K"}


async def test_refine_sends_the_image_before_a_text_that_asks_for_something_new(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    base = base64.b64encode(picture(size=(512, 640), colour="teal")).decode()
    async with caller() as client:
        answer = await client.post(
            "/refine", json={"refinePrompt": "at dawn", "images": [base], "imageCount": 1}
        )
    (image,) = images_of(answer)
    (call,) = gemini.calls
    assert call.image.format == "PNG"
    assert call.parts[0]["inlineData"]["mimeType"] == "image/png"
    assert (call.image.size, call.image.getpixel((9, 9))) == ((512, 640), (0, 128, 128))
    assert "on this theme: at dawn." in call.parts[1]["text"]
    assert config_of(gemini) == {"imageSize": "1K"}  # the image's own ratio
    assert image.size == (96, 64)


async def test_an_image_of_the_cloud_can_be_refined_and_remembers_its_prompt(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [made(image_part(picture(size=(512, 512))))]
    async with caller() as client:
        first = (await client.post("/generate", json=BODY)).json()["images"][0]
        await client.post("/refine", json={"prompt": "warmer", "images": [first], "imageCount": 1})
    assert "on this theme: a harbour in fog, warmer." in gemini.calls[-1].parts[1]["text"]


async def test_the_png_has_our_metadata_and_claims_no_seed_or_steps(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [made(image_part(picture("JPEG"), "image/jpeg"))]
    async with caller() as client:
        (image,) = images_of(await client.post("/generate", json={**BODY, "aspectRatio": "3:2"}))
    assert isinstance(image, Image.Image)
    assert image.info["parameters"] == f"a harbour in fog\nSize: 96x64, Model: {MODEL}"
    record = json.loads(image.info[RECORD])
    assert (record["route"], record["models"], record["profiles"]) == (
        "/generate",
        {"base": MODEL},
        {},
    )
    assert record["request"] == {
        "prompt": "a harbour in fog",
        "aspectRatio": "3:2",
        "imageCount": 1,
        "model": "gemini",
    }
    assert "trainedAlgorithmicMedia" in image.info[png.XMP_KEYWORD]


async def test_the_request_in_the_metadata_can_be_sent_again(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as client:
        (image,) = images_of(await client.post("/generate", json=BODY))
        record = json.loads(image.info[RECORD])
        again = await client.post(record["route"], json=record["request"])
    assert again.status_code == 201
    assert [call.body for call in gemini.calls] == [gemini.calls[0].body] * 2


async def test_tags_of_loras_are_taken_out_of_what_is_sent(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as client:
        await client.post("/generate", json={**BODY, "prompt": "a harbour <lora:ink:0.8>"})
        refused = await client.post("/generate", json={**BODY, "prompt": "<lora:ink:0.8>"})
    assert "mood: a harbour." in gemini.calls[0].parts[0]["text"]
    assert refused.status_code == 400
    assert len(gemini.calls) == 1


async def test_with_a_local_model_the_cloud_is_only_used_by_name(
    caller: Caller, gemini: GeminiStandIn, local: FakeConductor
) -> None:
    async with caller(is_default=False) as client:
        local_answer = await client.post("/generate", json=BODY)
        hard_coded = await client.post(
            "/v1/images/generations", json={**PROMPT, "model": "gpt-image-1"}
        )
        assert not gemini.calls
        cloud_answer = await client.post("/generate", json={**BODY, "model": "gemini"})
        by_its_own_name = await client.post("/generate", json={**BODY, "model": MODEL})
        unknown = await client.post("/generate", json={**BODY, "model": "imagen"})
    assert local_answer.json()["meta"]["model"] == "sdxl-base-1.0"
    assert local_answer.json()["meta"]["seeds"]
    assert hard_coded.status_code == 200
    assert len(local.calls) == 2
    assert cloud_answer.json()["meta"]["model"] == by_its_own_name.json()["meta"]["model"] == MODEL
    assert len(gemini.calls) == 2
    assert "requests for the model gemini" in cloud_answer.json()["meta"]["warnings"][0]
    assert unknown.status_code == 404
    assert "sdxl-base-1.0, gemini" in unknown.json()["error"]["message"]


async def test_the_openai_routes_make_and_edit_images_in_the_cloud(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as client:
        made = await client.post(
            "/v1/images/generations",
            json={**PROMPT, "model": "gpt-image-1", "n": 2, "size": "1024x1536"},
        )
        assert config_of(gemini)["aspectRatio"] == "2:3"
        edited = await client.post(
            "/v1/images/edits",
            data={"prompt": "at dawn", "model": "gemini"},
            files={"image": ("a.png", picture(size=(512, 640)), "image/png")},
        )
        models = await client.get("/v1/models")
    assert made.status_code == edited.status_code == 200, (made.text, edited.text)
    assert [opened(image["b64_json"]).size for image in made.json()["data"]] == [(96, 64)] * 2
    assert [image["seed"] for image in made.json()["data"]] == [None, None]
    assert made.json()["size"] == edited.json()["size"] == "96x64"
    assert "of the size the aspect ratio counts alone, here 2:3" in made.json()["warnings"]
    assert gemini.calls[-1].image.size == (512, 640)
    assert [model["id"] for model in models.json()["data"]] == ["gemini", "sdxl-base-1.0"]


async def test_a_stream_has_the_images_without_seeds(caller: Caller) -> None:
    async with caller() as client:
        native = await client.post("/generate", json={**PROMPT, "stream": True})
        openai = await client.post("/v1/images/generations", json={**PROMPT, "stream": True})
    lines = [
        json.loads(line.removeprefix("data: "))
        for line in native.text.splitlines()
        if line.startswith("data: ")
    ]
    images = [line for line in lines if "png" in line]
    assert [image["seed"] for image in images] == [None, None]
    assert lines[-1]["meta"]["seeds"] is None
    assert {"image": 0, "stage": "base", "step": 0, "of": 1}.items() <= lines[0].items()
    assert '"size":"96x64"' in openai.text.replace(" ", "")
    assert '"seed":null' in openai.text.replace(" ", "")


async def test_a_bare_png_and_a_job_that_is_fetched_later(caller: Caller) -> None:
    async with caller() as client:
        bare = await client.post("/generate", json=PROMPT, headers={"Accept": "image/png"})
        submitted = await client.post("/generate", json=PROMPT, headers={"Prefer": "respond-async"})
        async with client.stream("GET", f"{submitted.headers['location']}/events") as events:
            text = (await events.aread()).decode()
        job = await client.get(submitted.headers["location"])
    assert bare.content.startswith(png.SIGNATURE)
    assert "event: done" in text
    assert job.json()["result"]["meta"]["seeds"] is None


async def test_health_says_that_prompts_leave_the_machine(caller: Caller) -> None:
    async with caller() as client:
        health = (await client.get("/health")).json()
    async with caller(is_default=False) as client:
        beside = (await client.get("/health")).json()
        licenses = (await client.get("/licenses")).json()["licenses"]
    assert (health["model"], health["device"], health["cloudModels"]) == (
        "gemini",
        "cloud",
        ["gemini"],
    )
    assert health["optimizations"]["scheduler"] == MODEL
    assert any("are sent to Google's cloud" in warning for warning in health["warnings"])
    assert (beside["model"], beside["device"]) == ("sdxl-base-1.0", "cpu")
    assert beside["cloudModels"] == ["gemini"]
    assert any("requests for the model gemini" in warning for warning in beside["warnings"])
    assert licenses[-1]["url"] == "https://ai.google.dev/gemini-api/terms"


async def test_the_routes_of_the_web_ui_make_images_in_the_cloud_too(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    base = base64.b64encode(picture(size=(512, 640))).decode()
    async with caller() as client:
        made = await client.post(
            "/sdapi/v1/txt2img",
            json={**PROMPT, "width": 832, "height": 1216},
        )
        assert config_of(gemini)["aspectRatio"] == "2:3"
        edited = await client.post(
            "/sdapi/v1/img2img", json={"prompt": "at dawn", "init_images": [base]}
        )
    assert made.status_code == edited.status_code == 200, (made.text, edited.text)
    assert opened(made.json()["images"][0]).size == (96, 64)
    info = json.loads(made.json()["info"])
    assert (info["seed"], info["all_seeds"], info["steps"], info["width"]) == (-1, [-1], 0, 96)
    assert info["infotexts"] == [f"a harbour in fog\nSize: 96x64, Model: {MODEL}"]
    assert info["sd_model_name"] == MODEL
    assert len(gemini.calls) == 2
    assert "on this theme: at dawn." in gemini.calls[-1].parts[1]["text"]
