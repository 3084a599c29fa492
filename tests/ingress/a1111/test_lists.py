"""The web UI's lists and options, of which a caller's choice of a checkpoint is its own."""

import json
from base64 import b64encode
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.info import ExtensionInfo, ModelInfo
from serve_app.ingress.a1111.names import read_sampler
from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client
from tests.support.fake_conductor import INFO, NOISE, FakeConductor
from tests.support.ledgers import WatchedLedger
from tests.support.pictures import picture

PREFIX = "/sdapi/v1"
MODELS = (INFO.models[0], ModelInfo("other", 1024, NOISE))
INK = ExtensionInfo("lora", "ink", ("sdxl-base-1.0",), 0.7)
SERVICE = replace(INFO, models=MODELS, extensions=(INK,))
KEYED = AccessPolicy(keys=digests(["first-key", "second-key"]))
FIRST, SECOND = ({"Authorization": f"Bearer {name}-key"} for name in ("first", "second"))


async def listed(caller: httpx.AsyncClient, name: str) -> Any:
    answer = await caller.get(f"{PREFIX}/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_checkpoints_loras_and_samplers_are_listed_by_their_names(client: Client) -> None:
    caller = client(info=SERVICE)
    models = await listed(caller, "sd-models")
    assert [(model["title"], model["model_name"]) for model in models] == [
        ("sdxl-base-1.0", "sdxl-base-1.0"),
        ("other", "other"),
    ]
    (lora,) = await listed(caller, "loras")
    assert (lora["name"], lora["metadata"]["default_weight"]) == ("ink", 0.7)
    labels = [schedule["label"] for schedule in await listed(caller, "schedulers")]
    assert labels == ["Automatic", "Karras", "Exponential", "Simple"]


async def test_every_name_of_a_sampler_that_is_listed_is_taken(client: Client) -> None:
    for sampler in await listed(client(), "samplers"):
        for name in (sampler["name"], *sampler["aliases"]):
            assert read_sampler(name, None, Sampler.EULER) is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latent-upscale-modes", []),
        ("sd-vae", []),
        ("sd-modules", []),
        ("hypernetworks", []),
        ("face-restorers", []),
        ("realesrgan-models", []),
        ("prompt-styles", []),
        ("script-info", []),
        ("embeddings", {"loaded": {}, "skipped": {}}),
        ("scripts", {"txt2img": [], "img2img": []}),
    ],
)
async def test_what_there_is_not_is_an_empty_list(
    client: Client, name: str, content: object
) -> None:
    assert await listed(client(), name) == content


async def test_there_is_one_upscaler_and_it_is_none(client: Client) -> None:
    assert [entry["name"] for entry in await listed(client(), "upscalers")] == ["None"]


async def test_memory_and_flags_are_returned(client: Client) -> None:
    memory = (await listed(client(), "memory"))["ram"]
    assert memory["free"] + memory["used"] == memory["total"]
    assert (await listed(client(), "cmd-flags"))["api"] is True


@pytest.mark.parametrize("name", ["refresh-checkpoints", "refresh-loras", "refresh-vae"])
async def test_refreshing_needs_neither_a_body_nor_a_type(client: Client, name: str) -> None:
    answer = await client().post(f"{PREFIX}/{name}")
    assert (answer.status_code, answer.json()) == (200, None)
    foreign = await client().post(f"{PREFIX}/{name}", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


async def test_the_whole_object_of_options_can_be_sent_back_with_another_checkpoint(
    client: Client, conductor: FakeConductor
) -> None:
    caller = client(info=SERVICE)
    options = await listed(caller, "options")
    assert options["sd_model_checkpoint"] == "sdxl-base-1.0"
    changed = {**options, "sd_model_checkpoint": "other [0123abcd]"}
    answer = await caller.post(f"{PREFIX}/options", json=changed)
    assert (answer.status_code, answer.json()) == (200, None)
    assert (await listed(caller, "options"))["sd_model_checkpoint"] == "other"
    await caller.post(f"{PREFIX}/txt2img", json={"prompt": "a"})
    assert conductor.specs[0].model == "other"


async def test_a_choice_holds_for_its_caller_alone_and_in_every_process(
    client: Client, conductor: FakeConductor
) -> None:
    first, second = (client(info=SERVICE, policy=KEYED) for _ in range(2))
    await first.post(f"{PREFIX}/options", json={"sd_model_checkpoint": "other"}, headers=FIRST)
    for headers, name in ((FIRST, "other"), (SECOND, "sdxl-base-1.0")):
        answer = await second.get(f"{PREFIX}/options", headers=headers)
        assert answer.json()["sd_model_checkpoint"] == name
        await second.post(f"{PREFIX}/txt2img", json={"prompt": "a"}, headers=headers)
    assert [spec.model for spec in conductor.specs] == ["other", "sdxl-base-1.0"]


async def test_a_checkpoint_that_there_is_not_is_refused_and_the_choice_stays(
    client: Client,
) -> None:
    caller = client(info=SERVICE)
    await caller.post(f"{PREFIX}/options", json={"sd_model_checkpoint": "other"})
    refused = await caller.post(f"{PREFIX}/options", json={"sd_model_checkpoint": "/a/path"})
    assert refused.status_code == 404
    assert "sdxl-base-1.0, other" in refused.json()["detail"]
    assert (await listed(caller, "options"))["sd_model_checkpoint"] == "other"


async def test_an_option_that_would_change_pictures_is_refused_by_name(client: Client) -> None:
    refused = await client().post(f"{PREFIX}/options", json={"sd_vae": "another.vae"})
    assert refused.status_code == 400
    assert refused.json()["detail"].startswith("sd_vae can't be used")


async def test_a_choice_of_a_model_that_is_not_configured_any_more_is_none(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger
) -> None:
    await client(info=SERVICE).post(f"{PREFIX}/options", json={"sd_model_checkpoint": "other"})
    later = client()
    assert (await listed(later, "options"))["sd_model_checkpoint"] == "sdxl-base-1.0"
    assert (await later.post(f"{PREFIX}/txt2img", json={"prompt": "a"})).status_code == 200


async def test_a_picture_made_by_another_model_than_was_chosen_says_so(
    client: Client, conductor: FakeConductor
) -> None:
    await client(info=SERVICE).post(f"{PREFIX}/options", json={"sd_model_checkpoint": "other"})
    models = tuple(ModelInfo(name, 1024, NOISE) for name in ("sdxl-base-1.0", "newer"))
    later = client(info=replace(INFO, models=models))
    warning = (
        "the chosen checkpoint other is configured no longer: sdxl-base-1.0 was used. Choose "
        "again by POST /sdapi/v1/options"
    )
    images: dict[str, Any] = {"init_images": [picture(64, 64)]}
    for route, body in (("txt2img", {}), ("img2img", images)):
        answer = await later.post(f"{PREFIX}/{route}", json={"prompt": "a", **body})
        assert warning in json.loads(answer.json()["info"])["warnings"]
        assert warning in answer.headers["x-aura-warning"]
    assert {spec.model for spec in conductor.specs} == {"sdxl-base-1.0"}
    of_its_own = {"sd_model_checkpoint": "sdxl-base-1.0"}
    answer = await later.post(
        f"{PREFIX}/txt2img", json={"prompt": "a", "override_settings": of_its_own}
    )
    assert warning not in json.loads(answer.json()["info"])["warnings"]
    await later.post(f"{PREFIX}/options", json=of_its_own)
    answer = await later.post(f"{PREFIX}/txt2img", json={"prompt": "a"})
    assert warning not in json.loads(answer.json()["info"])["warnings"]


async def test_no_picture_of_the_only_model_waits_for_what_the_ledger_remembers(
    client: Client,
) -> None:
    class SilentLedger(WatchedLedger):
        async def option(self, caller: str, name: str) -> str | None:
            raise AssertionError("the ledger was read")

    caller = client(ledger=SilentLedger())
    assert (await caller.post(f"{PREFIX}/txt2img", json={"prompt": "a"})).status_code == 200


async def test_the_text_in_a_picture_is_read(client: Client) -> None:
    caller = client()
    body = {"prompt": "a fox", "negative_prompt": "blur", "seed": 3}
    made = (await caller.post(f"{PREFIX}/txt2img", json=body)).json()
    answer = await caller.post(f"{PREFIX}/png-info", json={"image": made["images"][0]})
    found = answer.json()
    text = json.loads(made["info"])["infotexts"][0]
    assert (found["info"], found["items"]) == (text, {"parameters": text})
    assert (found["parameters"]["Prompt"], found["parameters"]["Seed"]) == ("a fox", "3")
    assert found["parameters"]["Negative prompt"] == "blur"
    empty = await caller.post(f"{PREFIX}/png-info", json={"image": picture(64, 64)})
    assert empty.json() == {"info": "", "items": {}, "parameters": {}}
    refused = await caller.post(f"{PREFIX}/png-info", json={"image": "!"})
    assert (refused.status_code, refused.json()["error"]) == (400, "INVALID_IMAGE")


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        ("user:first-key", 200),
        (":second-key", 200),
        ("first-key", 200),
        ("first-key:", 401),
        ("user:wrong", 401),
        ("", 401),
    ],
)
async def test_a_key_may_be_a_password_below_sdapi_alone(
    client: Client, credentials: str, status: int
) -> None:
    caller = client(policy=KEYED)
    token = f"Basic {b64encode(credentials.encode()).decode()}"
    answer = await caller.get(f"{PREFIX}/options", headers={"Authorization": token})
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    elsewhere = await caller.get("/v1/models", headers={"Authorization": token})
    assert elsewhere.status_code == 401


@pytest.mark.parametrize("authorization", ["", "Basic ", "Basic", "Basic !!!"])
async def test_without_keys_an_empty_header_is_none(client: Client, authorization: str) -> None:
    answer = await client().get(f"{PREFIX}/options", headers={"Authorization": authorization})
    assert answer.status_code == 200
    keyed = client(policy=KEYED)
    refused = await keyed.get(f"{PREFIX}/options", headers={"Authorization": authorization})
    assert refused.status_code == 401


async def test_the_door_can_be_shut(client: Client) -> None:
    answer = await client(a1111=False).get(f"{PREFIX}/options")
    assert answer.status_code == 404
