"""Several checkpoints through Ray and HTTP.

MODELS_FILE is as an operator writes it, and base and refiner take turns on one replica, as in the
config for one GPU.
"""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from serve_app.app import build
from serve_app.cli.generate import generate
from serve_app.config.serve_config import read_config
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import perturbed
from tests.support.keys import base_key
from tests.support.lora_files import lora_file
from tests.support.service import available_gpus
from tests.support.single_files import to_single_file
from tests.support.waiting import until

APP = "several"
CONFIG = Path(__file__).parents[2] / "configs" / "one-gpu-12gb.yaml"
THREADS = "1"
REFINER = ModelKey(Stage.REFINER, "demo-refiner")


@pytest.fixture(scope="module")
def address(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start a second service on a pretended GPU, and return its address.

    It has the demo, a single file tuned from the demo, and the demo's refiner.
    """
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    to_single_file(perturbed(demo, folder / "tuned"), folder / "tune.safetensors")
    (folder / "models.yaml").write_text(
        f"models: {{tune: {{path: tune.safetensors, config: {demo}, steps: 5, license: Mine}}}}\n"
        "loras: {ink: {path: ink.safetensors, license: Ours}, oil: {path: oil.safetensors}}"
    )
    for seed, name in enumerate(("ink", "oil")):
        lora_file(demo, folder / f"{name}.safetensors", seed=seed)
    args = read_config(CONFIG).args
    overrides = {
        "MODEL_DEVICE": "cpu",
        "MODEL_CPU_THREADS": THREADS,
        "MODELS_FILE": str(folder / "models.yaml"),
        "LEDGER_FILE": str(folder / "ledger.sqlite"),  # a file is one service's alone
    }
    args = args.model_copy(update={"settings": args.settings | overrides})
    available = available_gpus()
    serve.run(build(args), name=APP, route_prefix="/several")
    url = f"http://127.0.0.1:{cluster}/several"
    until(lambda: httpx.get(f"{url}/health", timeout=10).status_code == 200, 90)
    until(lambda: available_gpus() == available - 1, 20)
    yield url
    serve.delete(APP)


def replica_stats() -> ReplicaStats:
    handle = serve.get_deployment_handle("BaseAndRefiner", APP)
    stats: list[ReplicaStats] = handle.broadcast("stats").results(timeout_s=10)
    (replica,) = stats
    return replica


def images(response: httpx.Response) -> list[bytes]:
    assert response.status_code == 201, response.text
    return [base64.b64decode(image) for image in response.json()["images"]]


def test_an_image_refined_on_one_replica_has_the_bytes_of_two_engines(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = httpx.get(f"{address}/health", timeout=10).json()
    assert (health["status"], health["replicas"]) == ("ready", {"base": 1, "refiner": 1})
    assert replica_stats().engine.models == (base_key("demo"), REFINER)
    args = read_config(CONFIG).args
    monkeypatch.setenv("MODEL_CPU_THREADS", THREADS)
    monkeypatch.setenv("MODEL_MAX_BATCH_SIZE", args.settings["MODEL_MAX_BATCH_SIZE"])
    fields = {"prompt": "a red heart", "seed": 8, "steps": 6, "imageCount": 2}
    answer = httpx.post(f"{address}/generate", json=fields, timeout=180)
    assert answer.json()["meta"]["refined"]
    assert replica_stats().engine.models == (REFINER, base_key("demo"))
    assert generate(fields, tmp_path / "heart.png") == 0
    assert images(answer) == [(tmp_path / f"heart-{n}.png").read_bytes() for n in (1, 2)]


def test_each_request_gets_its_model_and_the_response_names_it(address: str) -> None:
    health = httpx.get(f"{address}/health", timeout=10).json()
    assert (health["models"], health["loras"]) == (["demo", "tune"], ["ink", "oil"])
    terms = httpx.get(f"{address}/licenses", timeout=10).json()["licenses"]
    licenses = {license["model"]: license["name"] for license in terms}
    assert (licenses["tune"], licenses["ink"], licenses["oil"]) == ("Mine", "Ours", "not known")

    def generate_with(names: tuple[str, ...]) -> dict[str, Any]:
        model, *loras = names
        body: dict[str, Any] = {"prompt": "a red circle", "seed": 1, "imageCount": 1}
        body |= {"model": model, "loras": [{"name": name} for name in loras]}
        if model == "demo":
            body["steps"] = 5
        response = httpx.post(f"{address}/generate", json=body, timeout=180)
        assert response.status_code == 201, response.text
        return dict(response.json())

    requests = [("demo",), ("tune",), ("demo", "ink"), ("tune", "ink"), ("demo", "oil")]
    alone = [generate_with(names) for names in requests]
    with ThreadPoolExecutor(10) as callers:
        together = list(callers.map(generate_with, requests * 2))
    assert [body["images"] for body in together] == [body["images"] for body in alone] * 2
    assert len({body["images"][0] for body in alone}) == len(requests)
    assert [body["meta"]["model"] for body in together] == [names[0] for names in requests] * 2
    assert {body["meta"]["steps"] for body in together} == {5}


def test_an_unknown_model_is_a_404_that_lists_the_names(address: str) -> None:
    body = {"prompt": "a", "model": "/models/secret"}
    answer = httpx.post(f"{address}/generate", json=body, timeout=30)
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert message.startswith("model is unknown")
    assert "demo, tune" in message
    assert "secret" not in message
