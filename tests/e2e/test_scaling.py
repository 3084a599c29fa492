"""Replicas that come, go and are replaced while images are under way, by stages that sleep."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray import serve

from serve_app.bench.autoscaling_demo import deploy, observe
from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_stage import NATIVE, SleepingStage, ingress_config, stage_config
from tests.support.waiting import until

pytestmark = pytest.mark.ray
APP, ROUTE = "sleeping", "/sleeping"


@pytest.fixture
def address(cluster: int) -> Iterator[str]:
    """Where the application of a test is asked, which is gone afterwards."""
    yield f"http://127.0.0.1:{cluster}{ROUTE}"
    serve.delete(APP)


def ask(address: str, steps: int, handoff: float) -> int:
    body = {"prompt": "a", "imageCount": 1, "steps": steps, "width": NATIVE, "height": NATIVE}
    return httpx.post(
        f"{address}/generate", json=body | {"handoff": handoff}, timeout=240
    ).status_code


def start(bases: int, ledger: Path, drain: float) -> None:
    """The application runs anew, with so many base replicas; each may finish for so long."""
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
    graph = bind_graph(ingress_config(refiner=True), ledger, base, refiner, DeploymentScale(), 120)
    serve.run(graph, name=APP, route_prefix=ROUTE)


def busy_replicas() -> int:
    """Base replicas with an image that has taken enough steps to have left a snapshot."""
    handle = serve.get_deployment_handle("BaseGenerator", APP)
    facts = handle.broadcast("stats").results(timeout_s=10)
    return sum(max(one.positions.values(), default=0) > 5 for one in facts)


@pytest.mark.long
def test_images_of_replicas_that_a_redeploy_cuts_off_go_on_elsewhere(
    address: str, tmp_path: Path
) -> None:
    start(2, tmp_path / "ledger.sqlite", drain=0.5)
    with ThreadPoolExecutor(6) as callers:
        answers = [callers.submit(ask, address, 100, 0.5) for _ in range(6)]
        until(lambda: busy_replicas() == 2, 90)
        start(1, tmp_path / "ledger.sqlite", drain=0.5)
        assert [one.result() for one in answers] == [201] * 6


@pytest.mark.long
def test_replicas_come_and_go_with_the_work_and_no_image_is_lost(
    address: str, tmp_path: Path
) -> None:
    deploy(APP, ROUTE, str(tmp_path))
    until(lambda: serve.status().applications[APP].status == "RUNNING", 90)
    assert observe(APP).replicas == {Stage.BASE: 1, Stage.REFINER: 1}
    grown = threading.Event()

    def keep_asking(_: int) -> list[int]:
        answers = []
        while not grown.is_set():
            answers.append(ask(address, 30, 0.9))
        return answers

    with ThreadPoolExecutor(24) as callers:
        answers = callers.map(keep_asking, range(24))
        try:
            wait_for(base=3, refiner=1)
        finally:
            grown.set()
        assert {status for each in answers for status in each} == {201}
    wait_for(base=1, refiner=1)


def wait_for(base: int, refiner: int) -> None:
    """There are so many replicas; it took a while."""
    wanted = {Stage.BASE: base, Stage.REFINER: refiner}
    end = time.monotonic() + 150
    while (there := observe(APP).replicas) != wanted:
        assert time.monotonic() < end, there
        time.sleep(0.5)
