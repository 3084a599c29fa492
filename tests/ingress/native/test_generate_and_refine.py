"""What /generate and /refine make of a good request."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serve_app.core.diffusion.samplers import Sampler
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.pictures import picture, size_of


async def test_a_prompt_alone_gives_two_pictures_and_says_how(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": "  a red fox "})
    assert answer.status_code == 201
    body = answer.json()
    assert [size_of(text) for text in body["images"]] == [(1024, 1024)] * 2
    meta = body["meta"]
    first, second = meta["seeds"]
    assert second == (first + 1) % 2**32
    assert meta.pop("durationMs") >= 0
    assert len(meta.pop("jobId")) == 32
    meta.pop("seeds")
    assert meta == {
        "model": "sdxl-base-1.0",
        "width": 1024,
        "height": 1024,
        "steps": 30,
        "guidanceScale": 6.9,
        "sampler": "euler",
        "refined": True,
        "warnings": [],
    }
    assert {spec.prompt for spec in conductor.specs} == {"a red fox"}
    assert {spec.handoff for spec in conductor.specs} == {0.8}
    assert all(spec.negative_prompt is None for spec in conductor.specs)


async def test_every_field_reaches_the_spec(client: Client, conductor: FakeConductor) -> None:
    body = {
        "prompt": "a fox",
        "negativePrompt": "",
        "aspectRatio": "16:9",
        "seed": 2**32 - 1,
        "steps": 12,
        "guidanceScale": 4,
        "sampler": "dpmpp_2m_karras",
        "imageCount": 3,
        "refine": True,
        "handoff": 0.6,
        "timeoutSeconds": 90,
        "model": "sdxl-base-1.0",
    }
    answer = await client().post("/generate", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["meta"]["seeds"] == [2**32 - 1, 0, 1]
    spec = conductor.specs[0]
    assert (spec.width, spec.height) == (1344, 768)
    assert (spec.steps, spec.guidance, spec.handoff) == (12, 4, 0.6)
    assert (spec.sampler, spec.negative_prompt) == (Sampler.DPMPP_2M_KARRAS, "")
    assert {task.timeout_s for task in conductor.calls} == {90}


@pytest.mark.parametrize(("temperature", "guidance"), [(0, 9.3), (0.8, 6.9), (2, 3.3)])
async def test_temperature_loosens_the_guidance(
    client: Client, conductor: FakeConductor, temperature: float, guidance: float
) -> None:
    await client().post("/generate", json={"prompt": "a", "temperature": temperature})
    assert conductor.specs[0].guidance == guidance


async def test_pixels_win_over_the_aspect(client: Client, conductor: FakeConductor) -> None:
    body = {"prompt": "a", "aspectRatio": "9:16", "width": 512, "height": 640}
    await client().post("/generate", json=body)
    assert (conductor.specs[0].width, conductor.specs[0].height) == (512, 640)


async def test_without_a_refiner_base_makes_it_all_and_a_wish_for_one_is_answered(
    client: Client, conductor: FakeConductor
) -> None:
    alone = client(info=replace(INFO, refiner=None, warnings=("demo",)))
    plain = (await alone.post("/generate", json={"prompt": "a"})).json()["meta"]
    assert (plain["refined"], plain["warnings"]) == (False, ["demo"])
    wished = (await alone.post("/generate", json={"prompt": "a", "refine": True})).json()["meta"]
    assert wished["refined"] is False
    assert "no refiner" in wished["warnings"][1]
    assert {spec.handoff for spec in conductor.specs} == {1.0}


async def test_refine_false_leaves_the_refiner_out(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": "a", "refine": False})
    assert answer.json()["meta"]["refined"] is False
    assert conductor.specs[0].handoff == 1.0


@pytest.mark.parametrize(
    "names", [("baseImages", "refinePrompt"), ("images", "prompt")], ids=["long", "short"]
)
async def test_both_forms_of_refine_are_taken(
    client: Client, conductor: FakeConductor, names: tuple[str, str]
) -> None:
    images, prompt = names
    body = {
        images: ["data:image/png;base64," + picture(1024, 768), picture(640, 640)],
        prompt: "warmer",
        "config": {"steps": 14, "guidanceScale": 5.5, "modelPath": "sdxl-base-1.0"},
        "seed": 3,
    }
    answer = await client().post("/refine", json=body)
    assert answer.status_code == 201, answer.text
    assert [size_of(text) for text in answer.json()["images"]] == [(1024, 768), (640, 640)]
    spec, other = conductor.specs
    assert (spec.strength, spec.handoff, spec.steps, spec.guidance) == (0.6, 0.8, 14, 5.5)
    assert (spec.seed, other.seed, spec.prompt) == (3, 4, "warmer")
    assert len(conductor.calls[0].inputs.init_image or b"") == 1024 * 768 * 3


async def test_naming_the_refiner_asks_for_the_refiner_alone(
    client: Client, conductor: FakeConductor
) -> None:
    body = {
        "images": [picture(512, 512)],
        "prompt": "warmer",
        "config": {"modelPath": "sdxl-refiner-1.0"},
    }
    meta = (await client().post("/refine", json=body)).json()["meta"]
    assert (meta["model"], meta["refined"]) == ("sdxl-refiner-1.0", True)
    assert {spec.handoff for spec in conductor.specs} == {0.0}


async def test_pictures_go_round_the_base_images_and_each_gets_one(
    client: Client, conductor: FakeConductor
) -> None:
    images = [picture(512, 512), picture(640, 512), picture(512, 640)]
    await client().post("/refine", json={"images": images, "prompt": "a", "imageCount": 5})
    widths = [spec.width for spec in conductor.specs]
    assert widths == [512, 640, 512, 512, 640]
    conductor.calls.clear()
    await client().post("/refine", json={"images": images, "prompt": "a", "imageCount": 1})
    assert len(conductor.specs) == 3


async def test_an_ignored_or_changed_field_gives_a_warning(client: Client) -> None:
    body: dict[str, Any] = {"prompt": "a", "guidanceScale": 1, "negativePrompt": "ugly"}
    meta = (await client().post("/generate", json=body)).json()["meta"]
    assert "the negative prompt is ignored" in meta["warnings"][0]
    body = {"images": [picture(512, 512)], "prompt": "a", "steps": 4, "strength": 0.2}
    meta = (await client().post("/refine", json=body)).json()["meta"]
    assert "one step is run" in meta["warnings"][0]


async def test_the_images_warnings_follow_the_jobs_and_stand_once(
    client: Client, conductor: FakeConductor
) -> None:
    conductor.warnings = ("the prompt was cut", "demo")
    body = {"prompt": "a", "imageCount": 3}
    demo = client(info=replace(INFO, warnings=("demo",)))
    meta = (await demo.post("/generate", json=body)).json()["meta"]
    assert meta["warnings"] == ["demo", "the prompt was cut"]
    job = (await demo.get(f"/jobs/{meta['jobId']}")).json()
    assert job["result"]["meta"]["warnings"] == meta["warnings"]


@pytest.mark.parametrize("accept", ["image/png", "Image/PNG;q=1", "image/png, */*;q=0.5"])
async def test_a_single_image_may_be_sent_bare(client: Client, accept: str) -> None:
    answer = await client().post(
        "/generate", json={"prompt": "a", "imageCount": 1}, headers={"Accept": accept}
    )
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(answer.content)).size == (1024, 1024)


async def test_several_lines_of_accept_are_one(client: Client) -> None:
    lines = [("Accept", "application/json;q=0.1"), ("Accept", "image/png")]
    body = {"prompt": "a", "imageCount": 1}
    answer = await client().post("/generate", json=body, headers=lines)
    assert answer.headers["content-type"] == "image/png"
