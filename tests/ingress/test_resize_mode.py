"""`resizeMode` on its way from a request to the pixels, the warnings and the record."""

import base64
import json
from typing import Any

import pytest
from PIL import Image

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.ingress.image_input import split
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.request_corpus import saved

WIDE = Image.radial_gradient("L").resize((4096, 256)).convert("RGB")
BODY = {"images": [base64.b64encode(saved(WIDE)).decode()], "prompt": "a", "seed": 3}
CUT = (
    "image 0 was cropped: 50% of its 4096x256 pixels are cut away to fill 2048x256; "
    "padding or stretching instead keeps all of it"
)


def record_of(image: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(split(base64.b64decode(image)).record or "")
    return record


@pytest.mark.parametrize("mode", [None, *ResizeMode])
async def test_a_refined_image_remembers_how_its_base_was_resized(
    client: Client, conductor: FakeConductor, mode: ResizeMode | None
) -> None:
    body = BODY | {"imageCount": 1} | ({"resizeMode": mode.value} if mode else {})
    content = (await client().post("/refine", json=body)).json()
    is_cropped = mode in (None, ResizeMode.CROP)
    assert content["meta"]["warnings"] == ([CUT] if is_cropped else [])
    assert (conductor.specs[0].width, conductor.specs[0].height) == (2048, 256)

    record = record_of(content["images"][0])
    assert ("resizeMode" in record["request"]) is not is_cropped
    again = BODY | record["request"]
    again = {name: value for name, value in again.items() if name != "prompt"}
    repeated = (await client().post(record["route"], json=again)).json()
    assert repeated["images"] == content["images"]
    first, second = (task.inputs.init_image for task in conductor.calls)
    assert first == second


async def test_each_mode_gives_other_pixels(client: Client, conductor: FakeConductor) -> None:
    for mode in ResizeMode:
        await client().post("/refine", json=BODY | {"resizeMode": mode.value, "imageCount": 1})
    assert len({task.inputs.init_image for task in conductor.calls}) == 3


async def test_each_base_image_has_its_own_warning_once(client: Client) -> None:
    body = BODY | {"images": BODY["images"] * 2, "imageCount": 4}  # type: ignore[operator]
    warnings = (await client().post("/refine", json=body)).json()["meta"]["warnings"]
    assert warnings == [CUT, CUT.replace("image 0", "image 1")]


async def test_another_mode_is_refused_with_the_modes_there_are(client: Client) -> None:
    answer = await client().post("/refine", json=BODY | {"resizeMode": "fill"})
    assert answer.status_code == 400
    assert "resizeMode must be one of crop, pad, stretch" in answer.text
