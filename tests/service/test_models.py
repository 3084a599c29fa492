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
from tests.runtime.tailor import lora_file
from tests.runtime.tunes import perturbed
from tests.service.conftest import until

APP = "several"


@pytest.fixture(scope="module")
def address(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of its own beside the demo's: the demo, and a single file tuned from it."""
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    to_single_file(perturbed(demo, folder / "tuned"), folder / "tune.safetensors")
    (folder / "models.yaml").write_text(
        f"models: {{tune: {{path: tune.safetensors, config: {demo}, steps: 5, license: Mine}}}}\n"
        "loras: {ink: {path: ink.safetensors, license: Ours}, oil: {path: oil.safetensors}}"
    )
    for seed, name in enumerate(("ink", "oil")):
        lora_file(demo, folder / f"{name}.safetensors", seed=seed)
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
    assert (health["models"], health["loras"]) == (["demo", "tune"], ["ink", "oil"])
    terms = httpx.get(f"{address}/licenses", timeout=10).json()["licenses"]
    named = {one["model"]: one["name"] for one in terms}
    assert (named["tune"], named["ink"], named["oil"]) == ("Mine", "Ours", "not known")

    def ask(wish: tuple[str, ...]) -> dict[str, Any]:
        model, *loras = wish
        body: dict[str, Any] = {"prompt": "a red circle", "seed": 1, "imageCount": 1}
        body |= {"model": model, "loras": [{"name": name} for name in loras]}
        if model == "demo":
            body["steps"] = 5
        answer = httpx.post(f"{address}/generate", json=body, timeout=180)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    wishes = [("demo",), ("tune",), ("demo", "ink"), ("tune", "ink"), ("demo", "oil")]
    alone = [ask(wish) for wish in wishes]
    with ThreadPoolExecutor(10) as callers:
        together = list(callers.map(ask, wishes * 2))
    assert [one["images"] for one in together] == [one["images"] for one in alone] * 2
    assert len({one["images"][0] for one in alone}) == len(wishes)
    assert [one["meta"]["model"] for one in together] == [wish[0] for wish in wishes] * 2
    assert {one["meta"]["steps"] for one in together} == {5}


def test_an_unknown_model_is_a_404_that_lists_the_names(address: str) -> None:
    body = {"prompt": "a", "model": "/models/secret"}
    answer = httpx.post(f"{address}/generate", json=body, timeout=30)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == (
        "model names no model of this service; there is demo, tune"
    )
