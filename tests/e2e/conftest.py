"""A real Ray on this machine with nine make-believe GPUs, and the service on it."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from serve_app.app import build
from serve_app.config.app_args import AppArgs
from serve_app.core.service.events import ReplicaStats

APP = "aura"
STAGES = {"base": "BaseGenerator", "refiner": "Refiner"}
LONG: dict[str, Any] = {"prompt": "a red fox", "seed": 5, "steps": 100, "imageCount": 1}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], Any], seconds: float = 90) -> Any:
    """What `true` gives, once it gives something; fails after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


@dataclass
class Service:
    """The running service: its address, and a look into its replicas."""

    address: str
    known: dict[float, str] = field(default_factory=dict)  # see `undisturbed`

    def undisturbed(self, handoff: float) -> str:
        """The picture of `LONG` as an answer has it, when nothing dies on the way; made once."""
        if handoff not in self.known:
            answer = self.post("/generate", **LONG, handoff=handoff)
            assert answer.status_code == 201, answer.text
            (self.known[handoff],) = answer.json()["images"]
        return self.known[handoff]

    def post(self, route: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.address}{route}", json=body, timeout=180)

    def facts(self, stage: str) -> list[ReplicaStats]:
        """The facts of the replicas that answer; a dead one may still be listed for a moment."""
        handle = serve.get_deployment_handle(STAGES[stage], APP)
        try:
            found = handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
        except Exception:  # no replica, or one that died while it was asked
            return []
        return [f for f in found if isinstance(f, ReplicaStats)]

    def wait_ready(self) -> None:
        def ready() -> bool:
            answer = httpx.get(f"{self.address}/health", timeout=10)
            return answer.json()["replicas"] == {"base": 2, "refiner": 2}

        until(ready)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What Ray and its workers inherit; no traces are left in the home folder."""
    wanted = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "LEDGER_FILE": str(tmp_path_factory.mktemp("ledger") / "ledger.sqlite"),
    }
    before = dict(os.environ)
    os.environ.update(wanted)
    yield dict(os.environ)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def cluster(environment: dict[str, str]) -> Iterator[int]:
    """Ray with nine GPUs that are not there, four for `service` and four for a config of many, and
    Serve's proxy; gives the port."""
    port = free_port()
    ray.init(
        num_cpus=2,
        num_gpus=9,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def service(cluster: int) -> Service:
    """Two base replicas and two refiners, each with a make-believe GPU, on the CPU."""
    args = AppArgs.model_validate(
        {
            "base": {"min_replicas": 2, "num_gpus": 1},
            "refiner": {"min_replicas": 2, "num_gpus": 1},
            "settings": {
                "MODEL_DEVICE": "cpu",
                "MODEL_CPU_THREADS": "1",
                "MODEL_MAX_BATCH_SIZE": "4",
            },
        }
    )
    serve.run(build(args), name=APP)
    running = Service(f"http://127.0.0.1:{cluster}")
    running.wait_ready()
    return running
