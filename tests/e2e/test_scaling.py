"""Replicas that start, stop and are replaced while images are in flight, with sleeping stages."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray import serve

from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_service import deploy, observe
from serve_app.testing.sleeping_stage import (
    NATIVE_SIZE,
    SleepingStage,
    ingress_config,
    stage_config,
)
from tests.support.waiting import until

pytestmark = pytest.mark.ray
APP, ROUTE = "sleeping", "/sleeping"


@pytest.fixture
def address(cluster: int) -> Iterator[str]:
    """Return the address of a test's application, which is deleted afterwards."""
    yield f"http://127.0.0.1:{cluster}{ROUTE}"
    serve.delete(APP)


def generate(address: str, steps: int, handoff: float) -> int:
    body = {
        "prompt": "a",
        "imageCount": 1,
        "steps": steps,
        "width": NATIVE_SIZE,
        "height": NATIVE_SIZE,
    }
    return httpx.post(
        f"{address}/generate", json=body | {"handoff": handoff}, timeout=240
    ).status_code


def start(bases: int, ledger: Path, drain: float) -> None:
    """Deploy the application with `bases` base replicas, each of which drains for `drain` s."""
    base, refiner = (
        deploy_stage(
            SleepingStage,
            name,
            DeploymentScale(min_replicas=bases if stage is Stage.BASE else 1),
            images=2,
            gpus=1,
            drain=drain,
        ).bind(stage_config(stage, images=2), GpuSpeed(), RayMeter)
        for name, stage in (("BaseGenerator", Stage.BASE), ("Refiner", Stage.REFINER))
    )
    graph = bind_graph(
        ingress_config(refiner=True), LedgerFile(ledger), base, refiner, DeploymentScale(), 120
    )
    serve.run(graph, name=APP, route_prefix=ROUTE)


def busy_replicas() -> int:
    """Return how many base replicas have an image with a snapshot."""
    handle = serve.get_deployment_handle("BaseGenerator", APP)
    replicas: list[ReplicaStats] = handle.broadcast("stats").results(timeout_s=10)
    return sum(max(stats.engine.positions.values(), default=0) > 5 for stats in replicas)


@pytest.mark.long
def test_images_of_replicas_that_a_redeploy_cuts_off_continue_elsewhere(
    address: str, tmp_path: Path
) -> None:
    start(2, tmp_path / "ledger.sqlite", drain=0.5)
    with ThreadPoolExecutor(6) as callers:
        responses = [callers.submit(generate, address, 100, 0.5) for _ in range(6)]
        until(lambda: busy_replicas() == 2, 90)
        start(1, tmp_path / "ledger.sqlite", drain=0.5)
        assert [response.result() for response in responses] == [201] * 6


@pytest.mark.long
def test_replicas_follow_the_work_and_no_image_is_lost(address: str, tmp_path: Path) -> None:
    deploy(APP, ROUTE, str(tmp_path))
    until(lambda: serve.status().applications[APP].status == "RUNNING", 90)
    assert observe(APP).replicas == {Stage.BASE: 1, Stage.REFINER: 1}
    grown = threading.Event()

    def keep_generating(_: int) -> list[int]:
        statuses = []
        while not grown.is_set():
            statuses.append(generate(address, 30, 0.9))
        return statuses

    with ThreadPoolExecutor(24) as callers:
        statuses = callers.map(keep_generating, range(24))
        try:
            wait_for(base=3, refiner=1)
        finally:
            grown.set()
        assert {status for caller in statuses for status in caller} == {201}
    wait_for(base=1, refiner=1)


def wait_for(base: int, refiner: int) -> None:
    """Wait until base and refiner have these numbers of replicas."""
    wanted = {Stage.BASE: base, Stage.REFINER: refiner}
    until(lambda: observe(APP).replicas == wanted, 150)
