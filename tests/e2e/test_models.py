"""Several checkpoints through Ray and HTTP: MODELS_FILE as an operator writes it, and base and
refiner in turn on one replica, as the config for one card has it."""

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
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import perturbed
from tests.support.lora_files import lora_file
from tests.support.single_files import to_single_file
from tests.support.waiting import until

APP = "several"
CONFIG = Path(__file__).parents[2] / "configs" / "one-gpu-12gb.yaml"
THREADS = "1"


@pytest.fixture(scope="module")
def address(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of its own beside the demo's, on a card that is not there: the demo, a single file
    tuned from it, and the demo's refiner."""
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    to_single_file(perturbed(demo, folder / "tuned"), folder / "tune.safetensors")
    (folder / "models.yaml").write_text(
        f"models: {{tune: {{path: tune.safetensors, config: {demo}, steps: 5, license: Mine}}}}\n"
        "loras: {ink: {path: ink.safetensors, license: Ours}, oil: {path: oil.safetensors}}"
    )
    for seed, name in enumerate(("ink", "oil")):
        lora_file(demo, folder / f"{name}.safetensors", seed=seed)
    args = read_config(CONFIG).args
    here = {
        "MODEL_DEVICE": "cpu",
        "MODEL_CPU_THREADS": THREADS,
        "MODELS_FILE": str(folder / "models.yaml"),
    }
    args = args.model_copy(update={"settings": args.settings | here})
    serve.run(build(args), name=APP, route_prefix="/several")
    at = f"http://127.0.0.1:{cluster}/several"
    until(lambda: httpx.get(f"{at}/health", timeout=10).status_code == 200, 90)
    yield at
    serve.delete(APP)


def facts() -> ReplicaStats:
    handle = serve.get_deployment_handle("BaseAndRefiner", APP)
    stats: list[ReplicaStats] = handle.broadcast("stats").results(timeout_s=10)
    (replica,) = stats
    return replica


def images(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 201, answer.text
    return [base64.b64decode(image) for image in answer.json()["images"]]


def test_a_picture_refined_on_one_replica_is_what_two_engines_make_to_the_byte(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = httpx.get(f"{address}/health", timeout=10).json()
    assert (health["status"], health["replicas"]) == ("ready", {"base": 1, "refiner": 1})
    assert facts().models == ("demo", "demo-refiner")
    args = read_config(CONFIG).args
    monkeypatch.setenv("MODEL_CPU_THREADS", THREADS)
    monkeypatch.setenv("MODEL_MAX_BATCH_SIZE", args.settings["MODEL_MAX_BATCH_SIZE"])
    wishes = {"prompt": "a red heart", "seed": 8, "steps": 6, "imageCount": 2}
    answer = httpx.post(f"{address}/generate", json=wishes, timeout=180)
    assert answer.json()["meta"]["refined"]
    assert facts().models == ("demo-refiner", "demo")
    assert generate(wishes, tmp_path / "heart.png") == 0
    assert images(answer) == [(tmp_path / f"heart-{n}.png").read_bytes() for n in (1, 2)]


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
    message = answer.json()["error"]["message"]
    assert message.startswith("model names no model of this service")
    assert "demo, tune" in message
    assert "secret" not in message
