"""What a model brings with it to a request, and how it is chosen."""

import base64
from dataclasses import replace

from serve_app.core.defaults import Defaults
from serve_app.core.facts import ModelFacts
from serve_app.core.spec import Sampler
from tests.ingress.conducting import FACTS, NOISE, Painter
from tests.ingress.conftest import Client
from tests.ingress.corpus import quarters, saved

LIGHTNING = ModelFacts("fox-lightning", 1024, NOISE, Defaults(8, 1.0, Sampler.EULER_TRAILING))
FEW = replace(FACTS, models=(LIGHTNING,))
PICTURE = base64.b64encode(saved(quarters(512, 512))).decode()


async def test_a_distilled_model_brings_its_own_defaults(client: Client) -> None:
    alone = client(facts=FEW)
    for route, body in (
        ("/generate", {"prompt": "a fox", "temperature": 0.8}),
        ("/refine", {"prompt": "sharper", "images": [PICTURE]}),
    ):
        meta = (await alone.post(route, json=body)).json()["meta"]
        assert (meta["steps"], meta["guidanceScale"]) == (8, 1.0)
        assert (meta["sampler"], meta["warnings"]) == ("euler_trailing", [])


async def test_what_is_asked_for_wins_over_a_model_s_defaults(client: Client) -> None:
    alone = client(facts=FEW)
    asked = {"prompt": "a fox", "steps": 6, "guidanceScale": 2.5, "sampler": "dpmpp_sde"}
    meta = (await alone.post("/generate", json=asked)).json()["meta"]
    assert (meta["steps"], meta["guidanceScale"], meta["sampler"]) == (6, 2.5, "dpmpp_sde")


async def test_a_temperature_that_counts_for_nothing_is_told(client: Client) -> None:
    told = await client(facts=FEW).post("/generate", json={"prompt": "a fox", "temperature": 0.1})
    assert told.json()["meta"]["guidanceScale"] == 1.0
    assert told.json()["meta"]["warnings"] == [
        "temperature is ignored: fox-lightning is made for guidanceScale 1"
    ]


async def test_quality_is_no_number_of_steps_to_a_distilled_model(
    client: Client, painter: Painter
) -> None:
    alone = client(facts=FEW)
    for more in (
        {"quality": "low"},
        {"quality": "hd"},
        {"quality": "hd", "num_inference_steps": 5},
    ):
        await alone.post("/v1/images/generations", json={"prompt": "a fox"} | more)
    assert [spec.steps for spec in painter.specs] == [8, 8, 5]
