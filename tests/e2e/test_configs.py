"""The shipped configs, each started as Serve starts them, on GPUs that are not there."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.deployments.ray_private import serve_client
from tests.support.waiting import until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
PROMISED = {  # of each config: the replicas that /health tells, and the GPUs they have
    "serve_config.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/cpu.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/apple-mps.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/one-gpu-12gb.yaml": ({"base": 1, "refiner": 1}, 1),
    "configs/one-gpu-24gb.yaml": ({"base": 1, "refiner": 1}, 1),
    "configs/workstation-4gpu.yaml": ({"base": 3, "refiner": 1}, 4),
    "configs/cluster-autoscaling.yaml": ({"base": 1, "refiner": 1}, 2),
    "configs/kuberay-rayservice.yaml": ({"base": 1, "refiner": 1}, 2),
}
SHORT = "configs/one-gpu-24gb.yaml"  # the others take their time, on a busy machine a minute each
HERE = {  # this machine, which has neither the cards nor the volumes that some configs name
    "MODEL_DEVICE": "cpu",
    "MODEL_PRECISION": "fp32",
    "MODEL_CPU_THREADS": "1",
    "MODEL_CHECKPOINT_DIR": "",
    "MODEL_REFINER_CHECKPOINT_DIR": "",
    "LEDGER_FILE": "",
}


def gpus() -> float:
    """The GPUs that nobody has."""
    return float(ray.available_resources().get("GPU", 0))


@contextmanager
def running(config: Any, name: str) -> Iterator[None]:
    """The application of a config runs under this name and path, with its args, on this machine."""
    application = copy.deepcopy(config["applications"][0])
    application |= {"name": name, "route_prefix": f"/{name}"}
    settings = application["args"].setdefault("settings", {})
    settings |= HERE
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def ready() -> bool:
        status = serve.status().applications.get(name)
        assert status is None or status.status != "DEPLOY_FAILED", status.message
        return status is not None and status.status == "RUNNING"

    try:
        until(ready, 240)
        yield
    finally:
        serve.delete(name)


@pytest.mark.parametrize(
    "file",
    [one if one == SHORT else pytest.param(one, marks=pytest.mark.long) for one in PROMISED],
)
def test_a_shipped_config_starts_what_it_promises_and_answers(cluster: int, file: str) -> None:
    config = yaml.safe_load((ROOT / file).read_text())
    if "spec" in config:
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    name = Path(file).stem
    before = gpus()
    replicas, cards = PROMISED[file]
    with running(config, name):
        until(lambda: gpus() == before - cards, 20)
        health = httpx.get(f"http://127.0.0.1:{cluster}/{name}/health", timeout=10).json()
        assert (health["status"], health["replicas"]) == ("ready", replicas)
        body = {"prompt": "a red circle", "steps": 4, "imageCount": 1, "seed": 3}
        answer = httpx.post(f"http://127.0.0.1:{cluster}/{name}/generate", json=body, timeout=60)
        assert answer.status_code == 201, answer.text
        assert answer.json()["meta"]["refined"]
        assert len(answer.json()["images"]) == 1
    until(lambda: gpus() == before, 20)


def test_the_configs_that_start_are_those_that_are_shipped() -> None:
    shipped = [ROOT / "serve_config.yaml", *(ROOT / "configs").glob("*.yaml")]
    assert set(PROMISED) == {str(one.relative_to(ROOT)) for one in shipped}
