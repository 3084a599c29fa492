"""The shipped configs, each started as Serve starts them, on pretended GPUs.

These tests are long. The others start two of the configs as well: serve_config.yaml with `aura up`
(`test_startup.py`), and one with a GPU that base and refiner share (`test_models.py`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.deployments.ray_private import serve_client
from tests.support.service import available_gpus
from tests.support.waiting import until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
PROMISED = {  # by config: the replicas in /health, and the GPUs they have
    "serve_config.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/cpu.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/apple-mps.yaml": ({"base": 1, "refiner": 1}, 0),
    "configs/one-gpu-12gb.yaml": ({"base": 1, "refiner": 1}, 1),
    "configs/one-gpu-24gb.yaml": ({"base": 1, "refiner": 1}, 1),
    "configs/workstation-4gpu.yaml": ({"base": 3, "refiner": 1}, 4),
    "configs/cluster-autoscaling.yaml": ({"base": 1, "refiner": 1}, 2),
    "configs/kuberay-rayservice.yaml": ({"base": 1, "refiner": 1}, 2),
}
OVERRIDES = {  # for this machine, which lacks the GPUs and volumes that some configs name
    "MODEL_DEVICE": "cpu",
    "MODEL_PRECISION": "fp32",
    "MODEL_CPU_THREADS": "1",
    "MODEL_CHECKPOINT_DIR": "",
    "MODEL_REFINER_CHECKPOINT_DIR": "",
}


@contextmanager
def running(config: Any, name: str, ledger: Path) -> Iterator[None]:
    """Run the application of a config under this name and path, with its args."""
    application = copy.deepcopy(config["applications"][0])
    application |= {"name": name, "route_prefix": f"/{name}"}
    settings = application["args"].setdefault("settings", {})
    settings |= OVERRIDES | {"LEDGER_FILE": str(ledger)}
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


@pytest.mark.long
@pytest.mark.parametrize("file", PROMISED)
def test_a_shipped_config_starts_the_replicas_that_it_promises(
    cluster: int, file: str, tmp_path: Path
) -> None:
    config = next(yaml.safe_load_all((ROOT / file).read_text()))
    if "spec" in config:
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    name = Path(file).stem
    available = available_gpus()
    replicas, used = PROMISED[file]
    with running(config, name, tmp_path / "ledger.sqlite"):
        until(lambda: available_gpus() == available - used, 20)
        health = httpx.get(f"http://127.0.0.1:{cluster}/{name}/health", timeout=10).json()
        assert (health["status"], health["replicas"]) == ("ready", replicas)
        body = {"prompt": "a red circle", "steps": 4, "imageCount": 1, "seed": 3}
        response = httpx.post(f"http://127.0.0.1:{cluster}/{name}/generate", json=body, timeout=60)
        assert response.status_code == 201, response.text
        assert response.json()["meta"]["refined"]
        assert len(response.json()["images"]) == 1
    until(lambda: available_gpus() == available, 20)


def test_every_shipped_config_is_started() -> None:
    shipped = [ROOT / "serve_config.yaml", *(ROOT / "configs").glob("*.yaml")]
    assert set(PROMISED) == {str(path.relative_to(ROOT)) for path in shipped}
