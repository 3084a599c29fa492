"""`aura up`: a problem is one line of text, and accepted images are finished."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.doctor.checks.ports import find_listeners
from tests.support.checkpoints import broken_checkpoint
from tests.support.demo_spool import spool_demo_job
from tests.support.ports import free_port
from tests.support.running_up import RunningUp, post
from tests.support.waiting import until

pytestmark = pytest.mark.ray

SPOOLED = {"prompt": "a red circle", "steps": 80, "imageCount": 1, "seed": 5}
ONE_GPU_CONFIG = Path(__file__).parents[2] / "configs" / "one-gpu-12gb.yaml"
SUMMARY = {
    *("address", "docs", "listening", "keys", "model"),
    *("for", "terms", "try", "metrics", "logs"),
}


@pytest.mark.parametrize("kind", ["missing", "incomplete", "pickle"])
def test_up_refuses_a_broken_checkpoint_in_one_line_before_ray_starts(
    environment: dict[str, str], tmp_path: Path, kind: str
) -> None:
    folder, sentence = broken_checkpoint(kind, tmp_path)
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


@pytest.mark.long
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
    assert done.returncode == 2
    assert "MODEL_DEVICE=cuda needs a GPU, and Ray sees none" in done.stderr


def test_up_refuses_a_config_for_more_than_the_machine_has_at_once(
    environment: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "up", "--config", str(ONE_GPU_CONFIG)],
        env=environment | {"MODEL_DEVICE": "cpu", "BACKEND_PORT": str(free_port())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    error, logs = done.stderr.splitlines()
    assert error.startswith(
        "error BaseAndRefiner can't start: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU "
    )
    assert logs.startswith("logs: ")


def test_up_finishes_what_was_spooled_serves_shows_requests_and_drains_on_sigterm(
    environment: dict[str, str], tmp_path: Path
) -> None:
    metrics_port = free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}  # of which Ray would warn
    spool, ledger = tmp_path / "spool", tmp_path / "ledger.sqlite"
    job = asyncio.run(spool_demo_job(spool, ledger, SPOOLED, "spooled"))
    places = {"DRAIN_SPOOL": str(spool), "LEDGER_FILE": str(ledger)}
    with RunningUp(environment | token | places, tmp_path, METRICS_PORT=str(metrics_port)) as up:
        up.wait_ready()
        again = post(up.address, SPOOLED, "spooled")
        assert again.json()["meta"]["jobId"] == job
        assert again.json()["images"] == post(up.address, SPOOLED).json()["images"]
        resumed = until(lambda: re.search(rf"{job}-0 goes on from step (\d+)", up.stdout))
        assert int(resumed[1]) > 0
        assert f"{job}-0 starts again" not in up.stdout
        assert list(spool.iterdir()) == []
        statuses: list[int] = []
        health = httpx.get(f"{up.address}/health", timeout=10).json()
        assert health["replicas"] == {"base": 1, "refiner": 1}
        metrics = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10)
        assert "ray_" in metrics.text
        addresses = {
            listener.address
            for listener in find_listeners() or ()
            if listener.port in (up.port, metrics_port)
        }
        assert addresses <= {"127.0.0.1"}  # empty where the system does not list them

        def call() -> None:
            body = {"prompt": "the last one", "steps": 75, "imageCount": 1}
            try:
                response = httpx.post(f"{up.address}/generate?key=k", json=body, timeout=120)
            except httpx.HTTPError:
                statuses.append(0)
            else:
                statuses.append(response.status_code)

        thread = threading.Thread(target=call)
        thread.start()
        until(lambda: httpx.get(f"{up.address}/health", timeout=10).json()["owedSeconds"] > 0, 90)
        up.terminate()
        refusal = until(lambda: _refusal(up.address), 20)
        assert refusal["error"]["code"] == "DRAINING"
        thread.join()
        assert statuses == [201]
        assert up.process.wait(60) == 0
        # Of two ingress replicas, whose lines may change places.
        posts = [line for line in up.stdout.splitlines() if '"POST /generate HTTP/1.1" ' in line]
        refused = [line for line in posts if " 503 Service Unavailable " in line]
        served = [line for line in posts if " 201 Created " in line]
        assert len(refused) == 1
        assert len(served) == len(posts) - 1 >= 3
        assert all(re.search(r" images=\d job_id=", line) for line in served)
        lines = [line for line in up.stderr.splitlines() if line.strip()]
        shown = [line.split()[0] for line in lines if not line.startswith("still loading")]
        logs = up.stderr.split()[-1]
    assert shown[:2] == ["loading", "Aura"]
    assert shown[-4:] == ["stop", "draining:", "stopped", "logs:"]
    assert set(shown[2:-4]) <= SUMMARY
    assert (Path(logs) / "aura-up.log").stat().st_size > 0


def _refusal(address: str) -> Any:
    try:
        response = httpx.post(f"{address}/generate", json={"prompt": "a", "steps": 1}, timeout=30)
    except httpx.HTTPError:
        return {"error": {"code": "the connection was closed"}}
    return response.json() if response.status_code == 503 else None
