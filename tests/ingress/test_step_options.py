"""`guidanceInterval` and `cache` on their way from a request to the image and its record."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.spec import StepCache
from serve_app.ingress.image_input import split
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor

BODY: dict[str, Any] = {"prompt": "a", "seed": 3, "imageCount": 1}
OPTIONS = {"guidanceInterval": [0.28, 5.42], "cache": "deepcache"}
# A service whose operator has chosen both for its model.
CHOSEN = replace(
    INFO,
    models=(
        replace(
            INFO.default_model,
            defaults=ModelDefaults(guidance_interval=(0.5, 9.0), cache=StepCache.DEEPCACHE),
        ),
    ),
)


def metadata_of(image: str) -> tuple[dict[str, Any], str]:
    """The request in the record of an image, and the text for other tools."""
    png = base64.b64decode(image)
    record: dict[str, Any] = json.loads(split(png).record or "")
    start = png.index(b"parameters\0") + len(b"parameters\0")
    return record, png[start : start + 400].decode("latin-1")


async def test_an_image_remembers_both_and_is_made_again_from_its_record(
    client: Client, conductor: FakeConductor
) -> None:
    content = (await client().post("/generate", json=BODY | OPTIONS)).json()
    assert content["meta"]["warnings"] == []
    spec = conductor.specs[0]
    assert (spec.guidance_interval, spec.cache) == ((0.28, 5.42), StepCache.DEEPCACHE)
    record, text = metadata_of(content["images"][0])
    assert record["request"].items() >= OPTIONS.items()
    assert "Guidance interval: 0.28 to 5.42, Step cache: deepcache" in text
    repeated = (await client().post(record["route"], json=record["request"])).json()
    assert repeated["images"] == content["images"]
    assert conductor.specs[1] == spec


async def test_neither_is_named_where_neither_was_sent(
    client: Client, conductor: FakeConductor
) -> None:
    content = (await client().post("/generate", json=BODY)).json()
    record, text = metadata_of(content["images"][0])
    assert not record["request"].keys() & OPTIONS.keys()
    assert "nterval" not in text
    assert (conductor.specs[0].guidance_interval, conductor.specs[0].cache) == (None, "off")


@pytest.mark.parametrize(
    ("fields", "interval", "cache"),
    [
        ({}, (0.5, 9.0), "deepcache"),
        ({"guidanceInterval": [0, 10_000], "cache": "off"}, (0, 10_000), "off"),
    ],
)
async def test_a_model_has_defaults_that_a_request_can_switch_off(
    client: Client,
    conductor: FakeConductor,
    fields: dict[str, Any],
    interval: tuple[float, float],
    cache: str,
) -> None:
    content = (await client(info=CHOSEN).post("/generate", json=BODY | fields)).json()
    assert (conductor.specs[0].guidance_interval, conductor.specs[0].cache) == (interval, cache)
    record, _ = metadata_of(content["images"][0])
    assert record["request"]["cache"] == cache
    assert tuple(record["request"]["guidanceInterval"]) == interval


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"guidanceScale": 1}, "guidanceInterval is ignored: guidance is off at a scale of 1"),
        (
            {"guidanceInterval": [500, 600]},
            "no step is guided: guidanceInterval is 500 to 600, and",
        ),
        ({"guidanceInterval": [0, 0.01]}, "no step is guided: guidanceInterval is 0 to 0.01, and"),
    ],
)
async def test_an_interval_without_effect_gives_a_warning(
    client: Client, fields: dict[str, Any], warning: str
) -> None:
    content = (await client().post("/generate", json=BODY | OPTIONS | fields)).json()
    (text,) = content["meta"]["warnings"]
    assert text.startswith(warning)


async def test_a_model_s_own_interval_gives_no_warning_where_guidance_is_off(
    client: Client,
) -> None:
    body = BODY | {"guidanceScale": 1}
    content = (await client(info=CHOSEN).post("/generate", json=body)).json()
    assert content["meta"]["warnings"] == []
