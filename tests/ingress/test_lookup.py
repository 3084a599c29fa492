"""What a model brings with it to a request, and how it is chosen."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import EdmNoise, NoiseConfig
from serve_app.core.service.info import ModelInfo
from tests.support.api import Client
from tests.support.fake_conductor import INFO, NOISE, FakeConductor
from tests.support.request_corpus import quarters, saved

LIGHTNING = ModelInfo("fox-lightning", 1024, NOISE, ModelDefaults(8, 1.0, Sampler.EULER_TRAILING))
DISTILLED = replace(INFO, models=(LIGHTNING,))
PICTURE = base64.b64encode(saved(quarters(512, 512))).decode()


def record_of(text: str) -> dict[str, Any]:
    with Image.open(BytesIO(base64.b64decode(text))) as picture:
        record: dict[str, Any] = json.loads(picture.info["aura"])
    return record


async def test_a_distilled_model_brings_its_own_defaults(client: Client) -> None:
    distilled = client(info=DISTILLED)
    for route, body in (
        ("/generate", {"prompt": "a fox", "temperature": 0.8}),
        ("/refine", {"prompt": "sharper", "images": [PICTURE]}),
    ):
        meta = (await distilled.post(route, json=body)).json()["meta"]
        assert (meta["steps"], meta["guidanceScale"]) == (8, 1.0)
        assert (meta["sampler"], meta["warnings"]) == ("euler_trailing", [])


async def test_a_request_wins_over_a_model_s_defaults(client: Client) -> None:
    distilled = client(info=DISTILLED)
    body = {"prompt": "a fox", "steps": 6, "guidanceScale": 2.5, "sampler": "dpmpp_sde"}
    meta = (await distilled.post("/generate", json=body)).json()["meta"]
    assert (meta["steps"], meta["guidanceScale"], meta["sampler"]) == (6, 2.5, "dpmpp_sde")


async def test_an_ignored_temperature_gives_a_warning(client: Client) -> None:
    response = await client(info=DISTILLED).post(
        "/generate", json={"prompt": "a fox", "temperature": 0.1}
    )
    assert response.json()["meta"]["guidanceScale"] == 1.0
    assert response.json()["meta"]["warnings"] == [
        "temperature is ignored: fox-lightning is made for a guidance scale of 1"
    ]


async def test_quality_is_no_number_of_steps_to_a_distilled_model(
    client: Client, conductor: FakeConductor
) -> None:
    distilled = client(info=DISTILLED)
    for more in (
        {"quality": "low"},
        {"quality": "hd"},
        {"quality": "hd", "num_inference_steps": 5},
    ):
        await distilled.post("/v1/images/generations", json={"prompt": "a fox"} | more)
    assert [spec.steps for spec in conductor.specs] == [8, 8, 5]


PLAIN = INFO.default_model
SMALL = ModelInfo("fox-small", 512, NOISE, can_be_refined=False)
SEVERAL = replace(INFO, models=(PLAIN, LIGHTNING, SMALL))
NAMES = "Available: sdxl-base-1.0, fox-lightning, fox-small"


async def test_a_request_chooses_a_model_and_its_pictures_remember_it(
    client: Client, conductor: FakeConductor
) -> None:
    several = client(info=SEVERAL)
    for body, name in (({}, PLAIN.name), ({"model": "fox-lightning"}, "fox-lightning")):
        answer = await several.post("/generate", json={"prompt": "a fox", "seed": 3} | body)
        content = answer.json()
        assert content["meta"]["model"] == conductor.specs[-1].model == name
        record = record_of(content["images"][0])
        assert (record["request"]["model"], record["models"]["base"]) == (name, name)
        again = await several.post(record["route"], json=record["request"])
        assert again.json()["images"] == content["images"][:1]


async def test_each_model_has_its_own_sizes(client: Client, conductor: FakeConductor) -> None:
    several = client(info=SEVERAL)
    await several.post("/generate", json={"prompt": "a", "model": "fox-small"})
    assert (conductor.specs[-1].width, conductor.specs[-1].height) == (512, 512)
    body = {"prompt": "a", "model": "fox-small", "width": 2048, "height": 512}
    assert (await several.post("/generate", json=body)).status_code == 400
    body = {"prompt": "a", "images": [PICTURE], "config": {"modelPath": "fox-small"}}
    await several.post("/refine", json=body)
    assert (conductor.specs[-1].width, conductor.specs[-1].model) == (512, "fox-small")


async def test_a_model_that_the_refiner_does_not_continue_makes_the_whole_image(
    client: Client, conductor: FakeConductor
) -> None:
    several = client(info=SEVERAL)
    meta = (await several.post("/generate", json={"prompt": "a", "model": "fox-small"})).json()[
        "meta"
    ]
    assert (meta["refined"], meta["warnings"]) == (False, [])
    body = {"prompt": "a", "model": "fox-small", "refine": True}
    meta = (await several.post("/generate", json=body)).json()["meta"]
    assert (meta["refined"], conductor.specs[-1].handoff) == (False, 1.0)
    assert meta["warnings"] == [
        "the refiner does not continue images of fox-small: base made the whole image"
    ]
    distilled = {"prompt": "a", "images": [PICTURE], "config": {"modelPath": INFO.refiner}}
    assert (await several.post("/refine", json=distilled)).json()["meta"]["refined"]
    refused = await several.post("/refine", json=distilled | {"model": "fox-small"})
    assert refused.status_code == 400
    assert "does not continue images of fox-small" in refused.text


@pytest.mark.parametrize("name", ["fox", "../../etc/passwd", "/models/sdxl", ""])
@pytest.mark.parametrize("where", ["model", "config.modelPath", "openai"])
async def test_an_unknown_name_gets_the_available_names_and_is_not_repeated(
    client: Client, where: str, name: str
) -> None:
    body: dict[str, object] = {"prompt": "a", "images": [PICTURE], "model": name}
    route = {"model": "/refine", "config.modelPath": "/refine", "openai": "/v1/images/generations"}
    if where == "config.modelPath":
        body = {"prompt": "a", "images": [PICTURE], "config": {"modelPath": name}}
    if where == "openai":
        body.pop("images")
    answer = await client(info=SEVERAL).post(route[where], json=body)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"].upper() == "MODEL_NOT_FOUND"
    assert NAMES in error["message"]
    assert not name or (f" {name} " not in error["message"] and "/" not in error["message"])


KNOWN = replace(
    SEVERAL,
    models=(
        replace(PLAIN, aliases=("/models/sdxl-base", "models/sdxl-base", "owner/sdxl-base")),
        LIGHTNING,
        SMALL,
    ),
    refiner_aliases=("/models/refiner", "owner/refiner"),
)


@pytest.mark.parametrize("name", ["/models/sdxl-base/", "./models/sdxl-base", "owner/sdxl-base"])
async def test_a_configured_folder_or_a_hub_name_is_the_model_on_every_route(
    client: Client, conductor: FakeConductor, name: str
) -> None:
    known = client(info=KNOWN)
    refining = {"prompt": "a", "images": [PICTURE]}
    for route, body in (
        ("/generate", {"prompt": "a", "model": name}),
        ("/refine", refining | {"model": name}),
        ("/refine", refining | {"config": {"modelPath": name}}),
        ("/refine", refining | {"config": {"modelPath": name}, "model": PLAIN.name}),
        ("/v1/images/generations", {"prompt": "a", "model": name}),
    ):
        answer = await known.post(route, json=body)
        assert answer.status_code in (200, 201), answer.text
        assert conductor.specs[-1].model == PLAIN.name
        assert name.strip("./") not in answer.text
    listed = await known.get(f"/v1/models/{name.strip('./')}")
    assert listed.status_code == 200


async def test_the_refiner_is_known_by_its_folder_too(client: Client) -> None:
    for name in ("/models/refiner/", "owner/refiner", INFO.refiner):
        body = {"prompt": "a", "images": [PICTURE], "config": {"modelPath": name}}
        meta = (await client(info=KNOWN).post("/refine", json=body)).json()["meta"]
        assert meta["model"] == INFO.refiner


async def test_both_names_of_the_field_must_agree(client: Client, conductor: FakeConductor) -> None:
    several = client(info=SEVERAL)
    body = {"prompt": "a", "images": [PICTURE], "config": {"modelPath": "fox-small"}}
    assert (await several.post("/refine", json=body | {"model": "fox-small"})).status_code == 201
    refused = await several.post("/refine", json=body | {"model": PLAIN.name})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "config.modelPath is fox-small, but model is sdxl-base-1.0"
    )


async def test_openai_s_clients_choose_too_and_their_own_names_mean_the_default(
    client: Client, conductor: FakeConductor
) -> None:
    several = client(info=SEVERAL)
    for name, meant in (("fox-small", "fox-small"), ("dall-e-3", PLAIN.name), (None, PLAIN.name)):
        body = {"prompt": "a", "model": name}
        assert (await several.post("/v1/images/generations", json=body)).status_code == 200
        assert conductor.specs[-1].model == meant
    form = {"prompt": "a", "model": "fox-small"}
    files = {"image": ("a.png", base64.b64decode(PICTURE), "image/png")}
    assert (await several.post("/v1/images/edits", data=form, files=files)).status_code == 200
    assert conductor.specs[-1].model == "fox-small"
    listed = (await several.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == list(SEVERAL.model_names)


async def test_health_lists_the_models(client: Client) -> None:
    content = (await client(info=SEVERAL).get("/health")).json()
    assert (content["model"], content["models"]) == (PLAIN.name, list(SEVERAL.model_names))


WARNING = "the checkpoint's PNDMScheduler has no equal here: euler is used by default"
EDM = ModelInfo(
    "playground",
    1024,
    NoiseConfig(edm=EdmNoise()),
    ModelDefaults(sampler=Sampler.DPMPP_2M),
    sampler_warnings=(WARNING,),
)


async def test_a_sampler_that_the_model_does_not_offer_is_refused_by_name(
    client: Client, conductor: FakeConductor
) -> None:
    several = client(info=replace(INFO, models=(PLAIN, EDM)))
    body: dict[str, object] = {"prompt": "a fox", "model": "playground", "imageCount": 1}
    for path, more in (("/generate", {}), ("/refine", {"images": [PICTURE]})):
        answer = await several.post(path, json=body | more | {"sampler": "ddim"})
        assert answer.status_code == 400
        (detail,) = answer.json()["error"]["details"]
        assert detail["path"] == "sampler"
        assert "choose one of euler, euler_karras" in detail["message"]
    assert not conductor.specs
    assert (await several.post("/generate", json=body)).status_code == 201
    assert conductor.specs[-1].sampler is Sampler.DPMPP_2M
    body["model"] = PLAIN.name
    assert (await several.post("/generate", json=body | {"sampler": "ddim"})).status_code == 201


async def test_what_a_checkpoints_scheduler_lacks_is_a_warning_where_its_sampler_is_used(
    client: Client,
) -> None:
    edm = client(info=replace(INFO, models=(EDM,)))
    body = {"prompt": "a fox", "imageCount": 1}
    by_default = (await edm.post("/generate", json=body)).json()["meta"]
    assert (by_default["sampler"], by_default["warnings"]) == ("dpmpp_2m", [WARNING])
    chosen = (await edm.post("/generate", json=body | {"sampler": "euler"})).json()["meta"]
    assert (chosen["sampler"], chosen["warnings"]) == ("euler", [])
    health = (await edm.get("/health")).json()
    assert health["optimizations"] == {"scheduler": "dpmpp_2m"}
    assert health["warnings"] == [WARNING]
