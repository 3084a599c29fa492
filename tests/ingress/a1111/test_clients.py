"""The requests of other people's clients, one after the other as they send them.

Open WebUI, SillyTavern and LibreChat; `webuiapi` is run itself, in `test_webuiapi.py`.
"""

import json
from base64 import b64encode
from typing import Any

import httpx
import pytest

from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.pictures import size_of

KEYED = AccessPolicy(keys=digests(["a-key"]))
BASIC = {"Authorization": f"Basic {b64encode(b'user:a-key').decode()}"}
SDAPI = "/sdapi/v1"


@pytest.fixture
def keyed(client: Client) -> httpx.AsyncClient:
    return client(policy=KEYED, headers=BASIC)


async def got(caller: httpx.AsyncClient, path: str) -> Any:
    answer = await caller.get(f"{SDAPI}/{path}")
    assert answer.is_success, answer.text
    return answer.json()


async def posted(caller: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> Any:
    answer = await caller.post(f"{SDAPI}/{path}", json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def test_open_webui_connects_chooses_a_model_and_draws(
    keyed: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    assert await got(keyed, "options")  # "verify connection"
    (model,) = await got(keyed, "sd-models")
    options = await got(keyed, "options")
    await posted(keyed, "options", {**options, "sd_model_checkpoint": model["title"]})
    await got(keyed, "options")
    body = {"prompt": "a fox", "batch_size": 2, "width": 512, "height": 512, "steps": 20}
    made = await posted(keyed, "txt2img", body)
    assert [size_of(image) for image in made["images"]] == [(512, 512)] * 2
    assert "info" in made
    assert conductor.specs[0].steps == 20


async def test_open_webui_sends_an_empty_header_without_a_key(client: Client) -> None:
    caller = client(headers={"authorization": ""})
    assert await got(caller, "options")
    assert (await posted(caller, "txt2img", {"prompt": "a fox"}))["images"]


SILLY_TAVERN = {
    "url": "http://localhost:4000",
    "auth": "user:a-key",
    "prompt": "a fox, <lora:none:1>",
    "negative_prompt": "lowres",
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "steps": 20,
    "cfg_scale": 7,
    "width": 832,
    "height": 1216,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "denoising_strength": 0.4,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}


async def test_silly_tavern_reads_every_list_changes_the_model_and_draws(
    keyed: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    await got(keyed, "options")  # ping
    assert "DPM++ 2M" in [entry["name"] for entry in await got(keyed, "samplers")]
    assert "karras" in [entry["name"] for entry in await got(keyed, "schedulers")]
    (model,) = await got(keyed, "sd-models")
    upscalers = [*await got(keyed, "upscalers"), *await got(keyed, "latent-upscale-modes")]
    assert upscalers[0]["name"] == "None"
    assert [entry["model_name"] for entry in await got(keyed, "sd-vae")] == []
    await got(keyed, "sd-modules")
    assert (await got(keyed, "options"))["sd_model_checkpoint"] == model["title"]
    await posted(keyed, "options", {"sd_model_checkpoint": model["title"]})
    progress = await got(keyed, "progress")  # until nothing is loaded any more
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    assert "forge_preset" not in await got(keyed, "options")
    made = await posted(keyed, "txt2img", SILLY_TAVERN)
    assert size_of(made["images"][0]) == (832, 1216)
    assert "a-key" not in json.dumps({**made, "images": []})
    assert conductor.specs[0].sampler == "dpmpp_2m_karras"
    await keyed.post(f"{SDAPI}/interrupt")  # when its user closes the window


async def test_silly_tavern_sends_basic_and_nothing_behind_it_without_a_key(
    client: Client,
) -> None:
    caller = client(headers={"Authorization": "Basic "})
    assert (await posted(caller, "txt2img", SILLY_TAVERN))["images"]


async def test_libre_chat_parses_the_info_of_its_picture(client: Client) -> None:
    body = {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "cfg_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }
    made = await posted(client(), "txt2img", body)
    info = json.loads(made["info"])
    assert info["infotexts"][0].startswith("a fox\nNegative prompt: blur\nSteps: 22,")
    assert (info["width"], info["height"], type(info["seed"])) == (1024, 1024, int)
    assert size_of(made["images"][0]) == (1024, 1024)
