import base64
import json
from hashlib import sha256
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.ingress.containers import png
from serve_app.ingress.containers.container import Container
from serve_app.ingress.image_input import split
from serve_app.ingress.metadata import xmp
from serve_app.ingress.metadata.record import (
    RECORD,
    GenerationRecord,
    embed,
    infotext,
    prompt_in,
)
from serve_app.ingress.responses import converted
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor

MODELS = {"base": "sdxl-base-1.0", "refiner": "sdxl-refiner-1.0"}
SPEC = ImageSpec(
    prompt="misty forest", seed=7, width=832, height=1216, steps=30, guidance=6.9, handoff=0.8
)


def plain() -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, "PNG")
    return file.getvalue()


def record(prompt: str) -> GenerationRecord:
    return GenerationRecord("/generate", {"prompt": prompt}, prompt, {}, MODELS, {"base": "p"})


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    image.load()
    return image


@given(st.text(min_size=1, max_size=200).filter(lambda t: t.isprintable() or "\n" in t))
def test_any_prompt_comes_back_as_it_went_in_and_no_pixel_changes(prompt: str) -> None:
    file = embed(plain(), prompt, record(prompt))
    image = opened(file)
    assert prompt_in(png.split(file, RECORD)) == prompt
    assert image.info["parameters"] == prompt.replace("\0", " ")
    assert image.tobytes() == opened(plain()).tobytes()


def test_the_picture_says_to_machines_that_a_model_made_it() -> None:
    image = opened(embed(plain(), "a", record("a")))
    description = ElementTree.fromstring(image.info["XML:com.adobe.xmp"])[0][0]
    source_type = description.attrib[
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    ]
    assert source_type == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_the_text_has_the_form_that_other_tools_read() -> None:
    text = infotext(SPEC, MODELS)
    assert text == (
        "misty forest\n"
        "Steps: 30, Sampler: Euler, Schedule type: Automatic, CFG scale: 6.9, Seed: 7, "
        "Size: 832x1216, Model: sdxl-base-1.0, Refiner: sdxl-refiner-1.0, Refiner switch at: 0.8"
    )


def test_the_text_tells_what_differs() -> None:
    spec = ImageSpec(
        prompt="[a:b:0.5]",
        negative_prompt="[dull|grey]",
        seed=1,
        width=64,
        height=64,
        steps=8,
        guidance=3,
        sampler=Sampler.DPMPP_2M_KARRAS,
        strength=0.6,
        handoff=1,
    )
    lines = infotext(spec, {"base": "a, b: c"}).split("\n")
    assert lines[0] == "[a:b:0.5]"
    assert lines[1] == "Negative prompt: [dull|grey]"
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in lines[2]
    assert 'Model: "a, b: c", Denoising strength: 0.6' in lines[2]
    assert "Refiner" not in lines[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"prompt": 7}',
        '{"prompt": ""}',
        '{"prompt": "\\ud800"}',
        json.dumps({"prompt": "a" * 8001}),
        json.dumps({"prompt": "a", "pad": "b" * 400_000}),
        "[" * 60_000,
    ],
    ids=lambda text: text[:20],
)
def test_a_forged_record_is_as_good_as_none(text: str) -> None:
    assert prompt_in(Container(b"", record=text)) is None
    assert prompt_in(Container(b"", xmp=f"<a>{text}</a>".encode())) is None


def test_without_its_own_chunk_a_png_is_known_by_its_xmp() -> None:
    packet = xmp.packet_with_record(record("misty").as_json())
    assert prompt_in(Container(b"", xmp=packet, record="{")) == "misty"
    assert prompt_in(Container(b"", xmp=packet, record=record("foggy").as_json())) == "foggy"


async def made(client: Client, route: str, **body: Any) -> tuple[list[str], dict[str, Any]]:
    answer = (await client().post(route, json=body)).json()
    return answer["images"], answer["meta"]


def record_in(image: str) -> dict[str, Any]:
    return dict(json.loads(opened(base64.b64decode(image)).info["aura"]))


async def test_what_a_picture_remembers_asks_for_the_same_bytes_again(client: Client) -> None:
    images, _ = await made(
        client, "/generate", prompt="a fox", seed=5, negativePrompt="dull", aspectRatio="3:2"
    )
    for i, image in enumerate(images):
        record = record_in(image)
        assert record["request"]["seed"] == 5 + i
        again, _ = await made(client, record["route"], **record["request"])
        assert again == [image]


async def test_the_record_names_the_numeric_profiles_but_no_time_and_no_job(
    client: Client,
) -> None:
    images, meta = await made(client, "/generate", prompt="a", seed=1, imageCount=1)
    record = record_in(images[0])
    assert record["profiles"] == {
        "base": "base-float32-4-0123abcd",
        "refiner": "refiner-float32-4-0123abcd",
    }
    assert meta["jobId"] not in json.dumps(record)
    assert "duration" not in json.dumps(record)


async def test_a_refine_prompt_adds_to_the_prompt_that_made_the_picture(
    client: Client, conductor: FakeConductor
) -> None:
    images, _ = await made(client, "/generate", prompt="misty forest at dawn", imageCount=1)
    refined, _ = await made(
        client, "/refine", baseImages=images, refinePrompt="warmer contrast", imageCount=1
    )
    assert conductor.specs[-1].prompt == "misty forest at dawn, warmer contrast"
    again, _ = await made(client, "/refine", images=refined, prompt="less fog", imageCount=1)
    assert conductor.specs[-1].prompt == "misty forest at dawn, warmer contrast, less fog"
    assert record_in(again[0])["request"]["refinePrompt"] == "less fog"


async def test_a_refined_picture_can_be_made_again_from_the_same_base(client: Client) -> None:
    bases, _ = await made(client, "/generate", prompt="a", imageCount=1)
    refined, _ = await made(client, "/refine", images=bases, prompt="b", seed=3, imageCount=1)
    record = record_in(refined[0])
    again, _ = await made(client, record["route"], baseImages=bases, **record["request"])
    assert again == refined


async def test_a_picture_that_base_alone_refined_is_made_again_by_base_alone(
    client: Client, conductor: FakeConductor
) -> None:
    bases, _ = await made(client, "/generate", prompt="a", imageCount=1)
    refined, _ = await made(client, "/refine", images=bases, prompt="b", handoff=1, imageCount=1)
    record = record_in(refined[0])
    again, _ = await made(client, record["route"], baseImages=bases, **record["request"])
    assert again == refined
    assert conductor.specs[-1].handoff == 1


async def test_a_picture_of_the_openai_routes_is_made_again_by_them(
    client: Client, conductor: FakeConductor
) -> None:
    body = {"prompt": "a" * 3000, "size": "1536x1024", "negative_prompt": "b", "seed": 4}
    answer = (await client().post("/v1/images/generations", json=body)).json()
    record = record_in(answer["data"][0]["b64_json"])
    again = (await client().post(record["route"], json=record["request"])).json()
    assert again["data"] == answer["data"]

    base = base64.b64decode(answer["data"][0]["b64_json"])
    files: dict[str, Any] = {
        "image": ("a.png", base),
        "prompt": (None, "warmer"),
        "size": (None, "1024x1024"),
    }
    edited = (await client().post("/v1/images/edits", files=files)).json()
    record = record_in(edited["data"][0]["b64_json"])
    assert record["baseImage"]["sha256"] == sha256(base).hexdigest()
    files = {name: (None, str(value)) for name, value in record["request"].items()}
    again = (await client().post(record["route"], files={"image": ("a", base), **files})).json()
    assert again["data"] == edited["data"]
    assert (conductor.specs[-1].width, conductor.specs[-1].strength) == (1024, 0.6)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["山" * 8000, '"<&>' * 2000, "\x85\uffff\x01" * 2000])
def test_a_long_prompt_in_any_script_is_remembered(prompt: str, kind: str) -> None:
    request = {"refinePrompt": prompt, "negativePrompt": prompt}
    record = GenerationRecord("/refine", request, prompt, {}, {}, {})
    file = embed(plain(), "a", record)
    if kind != "png":
        file = converted(file, kind, 90)
    assert prompt_in(split(file)) == prompt


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
async def test_a_picture_in_another_format_is_made_again_from_its_record(
    client: Client, kind: str
) -> None:
    body = {"prompt": "a föx", "output_format": kind, "output_compression": 80, "seed": 4}
    answer = (await client().post("/v1/images/generations", json=body)).json()
    file = split(base64.b64decode(answer["data"][0]["b64_json"]))
    record = json.loads(xmp.record_in(file.xmp) or "")
    again = (await client().post(record["route"], json=record["request"])).json()
    assert again["data"] == answer["data"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_each_format_lets_a_refine_prompt_add_to_its_own(
    client: Client, conductor: FakeConductor, kind: str
) -> None:
    body = {"prompt": "misty forest", "output_format": kind}
    answer = (await client().post("/v1/images/generations", json=body)).json()
    image = answer["data"][0]["b64_json"]
    await made(client, "/refine", images=[image], prompt="warmer", imageCount=1)
    assert conductor.specs[-1].prompt == "misty forest, warmer"


async def test_the_limit_holds_for_the_field_and_not_for_the_sum(
    client: Client, conductor: FakeConductor
) -> None:
    images, _ = await made(client, "/generate", prompt="a" * 500, imageCount=1)
    await made(client, "/refine", images=images, prompt="b" * 500, imageCount=1)
    assert len(conductor.specs[-1].prompt) == 1002


async def test_a_foreign_picture_is_refined_by_the_refine_prompt_alone(
    client: Client, conductor: FakeConductor
) -> None:
    image = base64.b64encode(plain()).decode()
    await made(client, "/refine", images=[image], prompt="warmer", imageCount=1)
    assert conductor.specs[-1].prompt == "warmer"
