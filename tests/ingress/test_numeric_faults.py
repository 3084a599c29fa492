"""Pictures that are not finite over HTTP, from the demo's real networks; and no false alarms."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.damaged_models import POISONED, DamagedDemo
from tests.support.demo_api import demo_client

DEMO = "This is the demo checkpoint"
BODY: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "steps": 4, "imageCount": 1}
POISON = BODY | {"prompt": POISONED}


class Demo:
    """Base and refiner of the demo, loaded once; one prompt is poisoned at each of them."""

    def __init__(self) -> None:
        self.stages = {stage: DamagedDemo(stage) for stage in Stage}
        for demo in self.stages.values():
            demo.poison()
        fitted = {demo.key: demo.fit() for demo in self.stages.values()}
        self._loaders = {key: lambda *_, model=model: model for key, model in fitted.items()}

    def load(self, config: object = None) -> ModelCache:
        """Return a cache with both models in memory."""
        return ModelCache(self._loaders, capacity=2, pinned=list(self._loaders))


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


async def test_a_numeric_fault_has_its_code_at_every_door_and_in_its_job(demo: Demo) -> None:
    async with demo_client(demo.load) as http:
        native = await http.post("/generate", json=POISON)
        openai = await http.post("/v1/images/generations", json={"prompt": POISONED, "seed": 3})
        made = await http.post("/generate", json=BODY)
        keyed = [
            await http.post("/generate", json=POISON, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
    for response in (native, *keyed):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "NUMERIC_FAULT")
        assert "latents are not finite (NaN or infinite). Try another seed" in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
    assert openai.status_code == 500
    assert openai.json()["error"]["code"] == "numeric_fault"
    assert openai.headers["x-should-retry"] == "false"
    assert made.status_code == 201


async def test_a_picture_of_one_colour_is_sent_with_a_warning(demo: Demo) -> None:
    refiner = demo.stages[Stage.REFINER]
    with refiner.scaled("conv_out", 0):
        async with demo_client(demo.load) as http:
            json_ = await http.post("/generate", json=BODY)
            png = await http.post("/generate", json=BODY, headers={"Accept": "image/png"})
    warning = "the image of seed 3 is #808080 everywhere"
    assert (json_.status_code, png.status_code) == (201, 201)
    assert warning in json_.json()["meta"]["warnings"]
    assert warning in png.headers.get_list("x-aura-warning")
    (image,) = json_.json()["images"]
    assert np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))) == 0


EXTREMES: list[dict[str, Any]] = [
    {"guidanceScale": 20},
    {"guidanceScale": 0},
    {"temperature": 2},
    {"temperature": 0, "negativePrompt": "(blue:2), (square:0.1)"},
    {"prompt": "(a red circle:2) (on white:2), ((((large))))"},
    {"prompt": "(a red circle:0.01)", "guidanceScale": 20},
    {"steps": 1, "guidanceScale": 20},
    {"sampler": "heun", "guidanceScale": 20, "width": 96, "height": 160},
]


async def test_extreme_requests_raise_no_false_alarm(demo: Demo) -> None:
    async with demo_client(demo.load) as http:
        for extreme in EXTREMES:
            response = await http.post("/generate", json=BODY | extreme)
            assert response.status_code == 201, (extreme, response.text)
            warnings = response.json()["meta"]["warnings"]
            assert [w for w in warnings if not w.startswith(DEMO)] == [], extreme
