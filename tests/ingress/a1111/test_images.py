"""What txt2img and img2img make of the web UI's requests, and how they answer."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.info import ExtensionInfo, ModelInfo
from serve_app.core.service.tasks import ImageTask
from tests.support.api import Client
from tests.support.fake_conductor import INFO, NOISE, FakeConductor, WaitingConductor
from tests.support.pictures import picture, size_of
from tests.support.waiting import until_async

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
MODELS = (INFO.models[0], ModelInfo("other", 1024, NOISE))
INK = ExtensionInfo("lora", "ink", ("sdxl-base-1.0", "other"))


async def made(caller: httpx.AsyncClient, route: str = TXT2IMG, **body: Any) -> dict[str, Any]:
    """Return the `info` of a request that must succeed."""
    answer = await caller.post(route, json={"prompt": "a fox", **body})
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = json.loads(answer.json()["info"])
    return info


async def problem(caller: httpx.AsyncClient, **body: Any) -> str:
    """Return the error of a request that must be refused."""
    answer = await caller.post(TXT2IMG, json={"prompt": "a fox", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["errors"] == error["detail"]
    assert (error["error"], error["body"]) == ("VALIDATION_ERROR", "")
    detail: str = error["detail"]
    return detail


async def test_every_field_reaches_the_spec(client: Client, conductor: FakeConductor) -> None:
    info = await made(
        client(),
        negative_prompt="blur",
        seed=2**32 - 1,
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        batch_size=2,
        n_iter=2,
        steps="12",  # as some clients send numbers
        cfg_scale=4.5,
        width=512,
        height=640,
        refiner_switch_at=0.6,
    )
    spec = conductor.specs[0]
    assert len(conductor.specs) == 4
    assert (spec.steps, spec.guidance, spec.handoff) == (12, 4.5, 0.6)
    assert (spec.sampler, spec.negative_prompt) == (Sampler.DPMPP_2M_KARRAS, "blur")
    assert (spec.width, spec.height) == (512, 640)
    assert info["all_seeds"] == [2**32 - 1, 0, 1, 2]


async def test_the_answer_is_the_web_ui_s(client: Client) -> None:
    body = {"prompt": "a fox", "seed": 7, "batch_size": 2, "unknown": [1]}
    answer = (await client().post(TXT2IMG, json=body)).json()
    assert [size_of(image) for image in answer["images"]] == [(1024, 1024)] * 2
    assert answer["parameters"] == {name: body[name] for name in ("prompt", "seed", "batch_size")}
    info = json.loads(answer["info"])
    assert (info["seed"], info["all_seeds"], info["batch_size"]) == (7, [7, 8], 2)
    assert (info["width"], info["height"], info["sd_model_name"]) == (1024, 1024, "sdxl-base-1.0")
    assert info["infotexts"][1].startswith("a fox\nSteps: 30, Sampler: Euler")
    assert "Seed: 8, Size: 1024x1024" in info["infotexts"][1]
    assert info["all_prompts"] == ["a fox", "a fox"]


@pytest.mark.parametrize("seed", [-1, -1.0, "-1", "", None])
async def test_a_seed_below_zero_is_random(
    client: Client, conductor: FakeConductor, seed: object
) -> None:
    caller = client()
    seeds = {(await made(caller, seed=seed))["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert seeds == {spec.seed for spec in conductor.specs}


async def test_what_is_absent_or_null_is_the_model_s_own(
    client: Client, conductor: FakeConductor
) -> None:
    names = ("seed", "steps", "cfg_scale", "sampler_name", "width", "override_settings", "n_iter")
    nulls: dict[str, Any] = dict.fromkeys(names)
    await made(client(), **nulls)
    spec = conductor.specs[0]
    assert (spec.steps, spec.guidance, spec.sampler) == (30, 6.9, Sampler.EULER)
    assert (spec.width, spec.height, spec.handoff) == (1024, 1024, 0.8)


async def test_what_changes_nothing_is_ignored(client: Client, conductor: FakeConductor) -> None:
    """Clients send all that the web UI knows, with its defaults."""
    caller = client()
    await made(caller, seed=3)
    await made(
        caller,
        seed=3,
        enable_hr=False,
        hr_scale=2,
        hr_upscaler="Latent",
        restore_faces=False,
        tiling=None,
        subseed=-1,
        subseed_strength=0,
        seed_resize_from_h=0,
        seed_resize_from_w=-1,
        eta=1.0,
        s_churn=0,
        s_tmax=None,
        s_noise=1,
        styles=["mine"],
        script_name=None,
        script_args=[],
        alwayson_scripts={
            "ADetailer": {"args": [False]},
            "roop": {"args": []},
            "controlnet": {"args": [{"enabled": False, "model": "None"}]},
        },
        override_settings={"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic", "odd": 1},
        override_settings_restore_afterwards=True,
        clip_skip=2,
        save_images=True,
        denoising_strength=0.7,
    )
    assert conductor.specs[0] == conductor.specs[-1]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"enable_hr": True}, "enable_hr can't be used: high-resolution passes"),
        ({"restore_faces": True}, "restore_faces can't be used"),
        ({"tiling": True}, "tiling can't be used"),
        ({"subseed_strength": 0.3}, "subseed_strength can't be used"),
        ({"seed_resize_from_h": 512, "seed_resize_from_w": 512}, "seed_resize_from_h can't be"),
        ({"mask": "aGk="}, "mask can't be used: inpainting"),
        ({"script_name": "x/y plot"}, "script_name can't be used"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "canny"}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"x": {"args": {"enabled": True}}}}, "alwayson_scripts"),
        ({"s_churn": 4}, "s_churn can't be used"),
        ({"s_noise": 1.1}, "s_noise can't be used"),
        ({"alwayson_scripts": {"controlnet": {"args": [None, {"enabled": True}]}}}, "alwayson"),
        ({"alwayson_scripts": {"controlnet": {"args": [{}, {"enabled": True}]}}}, "alwayson"),
        ({"disable_extra_networks": True}, "disable_extra_networks can't be used"),
        (
            {"override_settings": {"forge_additional_modules": ["ae"]}},
            "override_settings.forge_add",
        ),
        ({"override_settings": {"eta_ancestral": 0.5}}, "override_settings.eta_ancestral can't"),
        ({"sampler_name": "DPM++ SDE", "eta": 0}, "eta must be 1 for dpmpp_sde"),
        ({"sampler_name": "Euler a", "eta": 0.5}, "eta must be 1 for euler_a"),
        ({"sampler_name": "DDIM", "eta": 1.0}, "eta must be 0 for DDIM"),
        ({"override_settings": {"sdxl_clip_l_skip": True}}, "override_settings.sdxl_clip_l_skip"),
        ({"override_settings": {"sd_vae": "other.vae"}}, "override_settings.sd_vae can't be"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ({"refiner_checkpoint": "another"}, "refiner_checkpoint must be sdxl-refiner-1.0 or None"),
        ({"batch_size": 3, "n_iter": 3}, "batch_size times n_iter must be at most 8, got 9"),
        ({"cfg_scale": 30}, "cfg_scale must be between 0 and 20, got 30"),
        ({"steps": 0}, "steps must be between 1 and 150"),
        ({"prompt": " "}, "prompt"),
        ({"sampler_name": "DPM fast"}, "sampler_name must be one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_would_change_the_picture_and_can_not_be_done_is_refused_by_name(
    client: Client, conductor: FakeConductor, body: dict[str, Any], detail: str
) -> None:
    assert detail in await problem(client(), **body)
    assert not conductor.calls


async def test_a_size_that_the_model_does_not_make_is_fitted_with_a_warning(
    client: Client, conductor: FakeConductor
) -> None:
    small = replace(INFO, models=(replace(INFO.models[0], native_size=64),))
    info = await made(client(info=small), width=512, height=768)
    assert (info["width"], info["height"]) == (48, 80)
    assert "the size 512x768 was fitted to 48x80" in info["warnings"]


@pytest.mark.parametrize(
    ("name", "handoff"), [("", 0.8), ("None", 1.0), ("sdxl-refiner-1.0 [abc123]", 0.8)]
)
async def test_the_refiner_is_used_unless_it_is_none(
    client: Client, conductor: FakeConductor, name: str, handoff: float
) -> None:
    await made(client(), refiner_checkpoint=name)
    assert conductor.specs[0].handoff == handoff


async def test_a_key_makes_no_picture_of_a_model_that_was_chosen_later(client: Client) -> None:
    caller, key = client(info=replace(INFO, models=MODELS)), {"Idempotency-Key": "k"}
    body = {"prompt": "a", "seed": 1}
    assert (await caller.post(TXT2IMG, json=body, headers=key)).status_code == 200
    await caller.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"})
    again = await caller.post(TXT2IMG, json=body, headers=key)
    assert (again.status_code, again.json()["error"]) == (422, "IDEMPOTENCY_CONFLICT")


async def test_loras_stand_in_the_prompt(client: Client, conductor: FakeConductor) -> None:
    info = await made(client(info=replace(INFO, extensions=(INK,))), prompt="a fox <lora:ink:0.5>")
    (ref,) = conductor.specs[0].extensions
    assert (ref.name, ref.weight, info["prompt"]) == ("ink", 0.5, "a fox")
    assert info["infotexts"][0].startswith("a fox <lora:ink:0.5>\n")


async def test_images_need_not_be_sent(client: Client) -> None:
    answer = await client().post(TXT2IMG, json={"prompt": "a", "send_images": False})
    assert answer.json()["images"] == []
    assert json.loads(answer.json()["info"])["infotexts"]


@pytest.mark.parametrize(
    ("mode", "meant"), [(0, ResizeMode.STRETCH), (1, ResizeMode.CROP), (2, ResizeMode.PAD)]
)
async def test_an_image_is_changed_with_the_web_ui_s_settings(
    client: Client, conductor: FakeConductor, mode: int, meant: ResizeMode
) -> None:
    body = {
        "init_images": [picture(512, 512), "data:image/png;base64," + picture(640, 512)],
        "denoising_strength": 0.4,
        "resize_mode": mode,
        "width": 768,
        "height": 512,
        "mask": None,
        "include_init_images": True,
    }
    answer = await client().post(IMG2IMG, json={"prompt": "warmer", **body})
    assert answer.status_code == 200, answer.text
    assert [size_of(image) for image in answer.json()["images"]] == [(768, 512)] * 2
    assert "init_images" not in answer.json()["parameters"]
    spec = conductor.specs[0]
    assert (spec.strength, spec.prompt) == (0.4, "warmer")


async def test_the_prompt_of_an_image_is_not_added_to(
    client: Client, conductor: FakeConductor
) -> None:
    caller = client()
    first = await caller.post(TXT2IMG, json={"prompt": "a red fox"})
    await made(caller, IMG2IMG, prompt="a wolf", init_images=first.json()["images"])
    assert [spec.prompt for spec in conductor.specs] == ["a red fox", "a wolf"]
    assert conductor.specs[1].strength == 0.75


async def test_a_resize_mode_that_there_is_not_is_refused(client: Client) -> None:
    body = {"prompt": "a", "init_images": [picture(512, 512)], "resize_mode": 3}
    answer = await client().post(IMG2IMG, json=body)
    assert answer.json()["detail"].startswith("resize_mode must be 0, 1 or 2, got 3")


async def test_a_request_chooses_its_model_and_another_caller_s_choice_is_not_touched(
    client: Client, conductor: FakeConductor
) -> None:
    caller = client(info=replace(INFO, models=MODELS))
    await made(caller, override_settings={"sd_model_checkpoint": "other [0123abcd]"})
    await made(caller)
    assert [spec.model for spec in conductor.specs] == ["other", "sdxl-base-1.0"]
    unknown = await caller.post(
        TXT2IMG, json={"prompt": "a", "override_settings": {"sd_model_checkpoint": "/a/path"}}
    )
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "MODEL_NOT_FOUND"
    assert "/a/path" not in unknown.text


@pytest.mark.parametrize("route", [TXT2IMG, IMG2IMG])
async def test_the_record_in_a_picture_makes_it_again(
    client: Client, conductor: FakeConductor, route: str
) -> None:
    caller = client(info=replace(INFO, extensions=(INK,)))
    body: dict[str, Any] = {
        "prompt": "a fox <lora:ink:0.3333333333333333>",
        "negative_prompt": "blur",
        "sampler_name": "DPM++ 2M SDE",
        "scheduler": "Exponential",
        "seed": 9,
        "batch_size": 2,
    }
    images = {"init_images": [picture(512, 768)], "resize_mode": 1} if route == IMG2IMG else {}
    made_images = (await caller.post(route, json={**body, **images})).json()["images"]
    record = json.loads(record_of(made_images[1]))
    assert record["route"] == route
    again = {**record["request"], **({"init_images": images["init_images"]} if images else {})}
    assert (await caller.post(route, json=again)).json()["images"] == [made_images[1]]


def record_of(image: str) -> str:
    """Return the text of the record in a PNG."""
    file = base64.b64decode(image)
    start = file.index(b"aura\0") + 5
    length = int.from_bytes(file[start - 13 : start - 9])
    return file[start : start - 5 + length].decode()


class OneByOne(FakeConductor):
    """Makes the first image at once, and the others when they are cancelled: never."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = asyncio.Event()

    async def generate(self, task: ImageTask) -> GeneratedImage:
        if not task.id.endswith("-0"):
            self.waiting.set()
            await asyncio.Event().wait()
        return await super().generate(task)


@pytest.mark.parametrize("route", ["interrupt", "skip"])
async def test_an_interrupted_job_gives_the_images_that_are_done(
    client: Client, route: str
) -> None:
    maker = OneByOne()
    caller = client(maker)
    body = {"prompt": "a", "batch_size": 3, "seed": 5}
    running = asyncio.create_task(caller.post(TXT2IMG, json=body))
    await maker.waiting.wait()
    await until_async(lambda: len(maker.calls) == 1)
    answer = await caller.post(f"/sdapi/v1/{route}")  # neither body nor content type
    assert answer.status_code == 200
    made_answer = (await running).json()
    info = json.loads(made_answer["info"])
    assert (len(made_answer["images"]), info["all_seeds"]) == (1, [5])
    assert "interrupted: 1 of 3 images was done" in info["warnings"]


async def test_an_interrupted_job_without_an_image_is_an_error(client: Client) -> None:
    waiting = WaitingConductor()
    caller = client(waiting)
    running = asyncio.create_task(caller.post(TXT2IMG, json={"prompt": "a"}))
    await waiting.begun.wait()
    await caller.post("/sdapi/v1/interrupt")
    answer = await running
    assert answer.status_code == 409
    assert answer.json()["error"] == "CANCELLED"


async def test_interrupting_nothing_is_no_error(client: Client) -> None:
    assert (await client().post("/sdapi/v1/interrupt")).json() == {}
