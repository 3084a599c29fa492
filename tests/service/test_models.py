"""Several checkpoints through Ray and HTTP: MODELS_FILE as an operator writes it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ray import serve

from serve_app.app import build
from serve_app.args import AppArgs
from serve_app.core.spec import Stage
from serve_app.demo.checkpoints import demo_folder
from tests.runtime.ldm import to_single_file
from tests.runtime.tunes import perturbed
from tests.service.conftest import until

APP = "several"


@pytest.fixture(scope="module")
def address(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of its own beside the demo's: the demo, and a single file tuned from it."""
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    to_single_file(perturbed(demo, folder / "tuned"), folder / "tune.safetensors")
    (folder / "models.yaml").write_text(
        f"models: {{tune: {{path: tune.safetensors, config: {demo}, steps: 5, license: Mine}}}}"
    )
    few = {"num_gpus": 0, "num_cpus": 0.1}
    args = AppArgs.model_validate(
        {
            "base": few,
            "refiner": few,
            "settings": {
                "MODEL_DEVICE": "cpu",
                "MODEL_CPU_THREADS": "1",
                "MODELS_FILE": str(folder / "models.yaml"),
            },
        }
    )
    serve.run(build(args), name=APP, route_prefix="/several")
    at = f"http://127.0.0.1:{cluster}/several"
    until(lambda: httpx.get(f"{at}/health", timeout=10).status_code == 200)
    yield at
    serve.delete(APP)


def test_each_request_gets_its_model_and_the_answer_says_so(address: str) -> None:
    health = httpx.get(f"{address}/health", timeout=10).json()
    assert health["models"] == ["demo", "tune"]
    terms = httpx.get(f"{address}/licenses", timeout=10).json()["licenses"]
    assert {one["model"]: one["name"] for one in terms}["tune"] == "Mine"

    def ask(model: str) -> dict[str, Any]:
        body = {"prompt": "a red circle", "seed": 1, "imageCount": 1, "model": model}
        if model == "demo":
            body["steps"] = 5
        answer = httpx.post(f"{address}/generate", json=body, timeout=180)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    alone = {model: ask(model) for model in ("demo", "tune")}
    with ThreadPoolExecutor(6) as callers:
        together = list(callers.map(ask, ("demo", "tune") * 3))
    for one in together:
        assert one["images"] == alone[one["meta"]["model"]]["images"]
        assert one["meta"]["steps"] == 5
    assert alone["demo"]["images"] != alone["tune"]["images"]
    assert [one["meta"]["model"] for one in together] == ["demo", "tune"] * 3


def test_an_unknown_model_is_a_404_that_lists_the_names(address: str) -> None:
    body = {"prompt": "a", "model": "/models/secret"}
    answer = httpx.post(f"{address}/generate", json=body, timeout=30)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == (
        "model names no model of this service; there is demo, tune"
    )
