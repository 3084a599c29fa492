"""Starting and stopping: a problem is one line of text, and accepted images are finished."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import choose_device
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError
from serve_app.deployments.ray_private import serve_client
from serve_app.doctor.checks.ports import find_listeners
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.ports import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.ray


def broken(kind: str, home: Path) -> tuple[Path, str]:
    """Return a folder that holds no complete checkpoint, and what the error must say."""
    folder = home / "sdxl"
    if kind == "missing":
        return folder, "does not exist"
    shutil.copytree(demo_folder(Stage.BASE), folder)
    if kind == "incomplete":
        shutil.rmtree(folder / "vae")
        return folder, "lacks its folder vae"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    return folder, "holds a pickle in unet"


@pytest.mark.parametrize("kind", ["missing", "incomplete", "pickle"])
def test_up_refuses_a_broken_checkpoint_in_one_line_before_ray_starts(
    environment: dict[str, str], tmp_path: Path, kind: str
) -> None:
    folder, sentence = broken(kind, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "up"],
        env=environment | {"MODEL_CHECKPOINT_DIR": str(folder), "BACKEND_PORT": str(free_port())},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert f"MODEL_CHECKPOINT_DIR={folder} {sentence}" in line
    assert "Get it whole with: aura download sdxl" in line


def test_up_reports_a_port_in_use_and_a_misspelt_setting(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, free = str(taken.getsockname()[1]), {"BACKEND_PORT": str(free_port())}
        for extra, sentence in (
            ({"BACKEND_PORT": port}, f"BACKEND_PORT={port} can't be used"),
            (free | {"METRICS_PORT": port}, f"METRICS_PORT={port} can't be used (Address already"),
            (
                free | {"METRICS_PORT": free["BACKEND_PORT"]},
                f"METRICS_PORT={free['BACKEND_PORT']} can't be used (it is the port of",
            ),
            ({"MODEL_DEVISE": "cpu"}, "Did you mean MODEL_DEVICE?"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "serve_app", "up"],
                env=environment | extra,
                capture_output=True,
                text=True,
            )
            assert done.returncode != 0
            assert sentence in done.stderr


def test_under_serve_run_the_same_line_is_the_application_s_status(
    cluster: int, tmp_path: Path
) -> None:
    folder, sentence = broken("missing", tmp_path)
    application: dict[str, Any] = {
        "name": "broken",
        "route_prefix": "/broken",
        "import_path": "serve_app.app:build",
        "args": {"settings": {"MODEL_CHECKPOINT_DIR": str(folder)}},
    }
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def failed() -> str | None:
        status = serve.status().applications.get("broken")
        return status.message if status and status.status == "DEPLOY_FAILED" else None

    message = until(failed, 90)
    assert message is not None
    assert f"MODEL_CHECKPOINT_DIR={folder} {sentence}" in message
    assert "aura download sdxl" in message
    serve.delete("broken")


def test_up_reports_that_a_configured_gpu_is_missing(environment: dict[str, str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "up"],
        env=environment | {"MODEL_DEVICE": "cuda", "BACKEND_PORT": str(free_port())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "MODEL_DEVICE=cuda needs a GPU, and Ray sees none" in done.stderr


def test_up_serves_on_its_port_and_drains_on_sigterm(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port, metrics_port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    running = subprocess.Popen(
        [sys.executable, "-m", "serve_app", "up"],
        env=environment
        | {
            "BACKEND_PORT": str(port),
            "METRICS_PORT": str(metrics_port),
            "MODEL_CPU_THREADS": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    statuses: list[int] = []
    try:

        def ready() -> bool:
            assert running.poll() is None
            try:
                return httpx.get(f"{address}/health", timeout=10).status_code == 200
            except httpx.HTTPError:
                return False

        until(ready, 120)
        health = httpx.get(f"{address}/health", timeout=10).json()
        assert health["replicas"] == {"base": 1, "refiner": 1}
        metrics = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10)
        assert "ray_" in metrics.text
        addresses = {
            listener.address
            for listener in find_listeners() or ()
            if listener.port in (port, metrics_port)
        }
        assert addresses <= {"127.0.0.1"}  # empty where the system does not list them

        def call() -> None:
            body = {"prompt": "the last one", "steps": 75, "imageCount": 1}
            try:
                response = httpx.post(f"{address}/generate", json=body, timeout=120)
            except httpx.HTTPError:
                statuses.append(0)
            else:
                statuses.append(response.status_code)

        thread = threading.Thread(target=call)
        thread.start()
        until(lambda: httpx.get(f"{address}/health", timeout=10).json()["owedSeconds"] > 0, 90)
        running.send_signal(signal.SIGTERM)
        refusal = until(lambda: _refusal(address), 20)
        assert refusal["error"]["code"] == "DRAINING"
        thread.join()
        assert statuses == [201]
        assert running.wait(60) == 0
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
        assert running.stderr is not None
        log = running.stderr.read()
        running.stderr.close()
    assert "draining" in log
    assert "stopped" in log


def _refusal(address: str) -> Any:
    try:
        response = httpx.post(f"{address}/generate", json={"prompt": "a", "steps": 1}, timeout=30)
    except httpx.HTTPError:
        return {"error": {"code": "the connection was closed"}}
    return response.json() if response.status_code == 503 else None


@pytest.mark.parametrize(
    ("name", "gpus", "device"), [("auto", 0, "cpu"), ("auto", 4, "cuda"), ("cpu", 4, "cpu")]
)
def test_the_device_follows_what_ray_has(name: str, gpus: float, device: str) -> None:
    assert choose_device(name, gpus=gpus) == device


def test_one_gpu_of_many_is_refused_under_serve_run_with_the_line_to_export() -> None:
    with pytest.raises(SettingsError, match="export CUDA_VISIBLE_DEVICES=1 MODEL_DEVICE=cuda"):
        choose_device("cuda:1", gpus=4)


def test_args_are_validated() -> None:
    with pytest.raises(ValueError, match="min_replica\n"):
        AppArgs.model_validate({"base": {"min_replica": 2}})
    with pytest.raises(ValueError, match="must not be below"):
        DeploymentScale(min_replicas=3, max_replicas=2)
    assert DeploymentScale(min_replicas=3).effective_max_replicas == 3
