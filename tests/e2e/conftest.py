"""A real Ray on this machine with nine pretended GPUs, and the service on it."""

import os
from collections.abc import Iterator

import pytest
import ray
from ray import serve

from serve_app.app import build
from serve_app.config.app_args import AppArgs
from tests.support.ports import free_port
from tests.support.service import APP, Service
from tests.support.webhook_receiver import WHSEC, WebhookReceiverServer, webhook_receiver


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment of Ray and its workers, which leaves no files in the home folder."""
    variables = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),  # where a ledger is by default
    }
    previous = dict(os.environ)
    os.environ.update(variables)
    yield dict(os.environ)
    os.environ.clear()
    os.environ.update(previous)


@pytest.fixture(scope="session")
def cluster(environment: dict[str, str]) -> Iterator[int]:
    """Start Ray and Serve's proxy, and return the proxy's port.

    Ray believes in nine GPUs: four for `service`, and four for the config with most of them.
    """
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
def receiver() -> Iterator[WebhookReceiverServer]:
    """Run a receiver of webhooks, which `service` knows."""
    with webhook_receiver() as server:
        yield server


@pytest.fixture(scope="session")
def service(cluster: int, receiver: WebhookReceiverServer) -> Service:
    """Start two base replicas and two refiners on the CPU, each with a pretended GPU."""
    args = AppArgs.model_validate(
        {
            "base": {"min_replicas": 2, "num_gpus": 1},
            "refiner": {"min_replicas": 2, "num_gpus": 1},
            "settings": {
                "MODEL_DEVICE": "cpu",
                "MODEL_CPU_THREADS": "1",
                "MODEL_MAX_BATCH_SIZE": "4",
                "MCP_API": "1",
                "WEBHOOK_URLS": f"{receiver.url}={WHSEC}",
            },
        }
    )
    serve.run(build(args), name=APP)
    running = Service(f"http://127.0.0.1:{cluster}")
    running.wait_ready()
    return running
