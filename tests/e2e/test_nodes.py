"""A cluster of two nodes, one of which dies while images are made on both."""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.core.service.events import ReplicaStats
from tests.support import ray_nodes as nodes
from tests.support.ports import free_port
from tests.support.service import LONG, STAGES
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

SNAPSHOT_INTERVAL = 5
FAR = 30  # the step that images have reached on the node that dies: of 80, or of 20 to 100
BODIES = [LONG | {"seed": n, "handoff": handoff} for n, handoff in enumerate((0.8, 0.8, 0.2, 0.2))]
QUICK = [LONG | {"seed": n, "steps": 4, "handoff": 0.5} for n in range(2)]
CONTINUED = re.compile(r"(\S+): .* is gone; continuing at step (\d+) of (\d+)")


@dataclass(frozen=True)
class Service:
    """The running service: its address, its second node, and the process that joined its Ray."""

    address: str
    second: str
    logs: Path
    process: ProcessPoolExecutor

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a function of `tests.support.ray_nodes` returns."""
        return self.process.submit(function, *args).result(120)

    def stats(self, stage: str) -> dict[str, ReplicaStats]:
        stats: dict[str, ReplicaStats] = self.call(nodes.stats, stage)
        return stats

    def image(self, body: dict[str, Any]) -> str:
        """Return the base64 image that a request gives."""
        response = httpx.post(f"{self.address}/generate", json=body, timeout=600)
        assert response.status_code == 201, response.text
        (image,) = response.json()["images"]
        return str(image)

    def in_flight(self) -> int:
        """Return how many images are on some replica."""
        return sum(
            len(stats.engine.positions) for stage in STAGES for stats in self.stats(stage).values()
        )

    def replicas(self) -> Any:
        """Return the replicas in /health by stage; None while there is no response."""
        try:
            return httpx.get(f"{self.address}/health", timeout=10).json()["replicas"]
        except (httpx.HTTPError, ValueError):  # the proxy waits for the ingress
            return None

    def continued(self) -> list[tuple[str, int, int]]:
        """Return the images continued so far, each with its step and its segment's last."""
        logs = "".join(file.read_text() for file in self.logs.glob("worker-*.err"))
        return [(id, int(step), int(stop)) for id, step, stop in CONTINUED.findall(logs)]


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    """Start two base replicas and two refiners: one of each on the head and on a second node."""
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="aura-") as home,  # a short name: sockets lie in it
        ProcessPoolExecutor(1, spawn) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", home)  # or every Ray started here would join this one
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all at the loopback address
        patch.setenv("RAY_enable_metrics_collection", "0")
        try:
            process.submit(nodes.start, port, f"{home}/ledger.sqlite").result(120)
            second = process.submit(nodes.add).result(60)
            logs = Path(home) / "ray" / "session_latest" / "logs"
            running = Service(f"http://127.0.0.1:{port}", second, logs, process)
            until(lambda: running.replicas() == {"base": 2, "refiner": 2}, 300)
            yield running
        finally:
            process.submit(nodes.stop).result(120)


@dataclass(frozen=True)
class Reference:
    """Images, and the stats of all replicas by stage and node after them."""

    images: list[str]
    stats: dict[str, dict[str, ReplicaStats]]


@pytest.fixture(scope="module")
def reference(service: Service) -> Reference:
    """Make the images of `BODIES` and `QUICK` while nothing dies."""
    with ThreadPoolExecutor(len(BODIES + QUICK)) as callers:
        images = list(callers.map(service.image, BODIES + QUICK))
    return Reference(images, {stage: service.stats(stage) for stage in STAGES})


def test_images_are_made_on_both_nodes(service: Service, reference: Reference) -> None:
    for stage in STAGES:
        finished = {
            node: replica.engine.finished for node, replica in reference.stats[stage].items()
        }
        print(f"{stage}: {finished}")
        assert set(finished) == service.call(nodes.alive)
        assert min(finished.values()) > 0
        assert sum(finished.values()) == len(reference.images)


def test_a_dead_node_costs_its_images_a_few_steps_and_fails_no_request(
    service: Service, reference: Reference
) -> None:
    with ThreadPoolExecutor(len(BODIES + QUICK)) as callers:
        responses = []
        for body in BODIES:  # in this order, so that either node has some of each kind
            responses.append(callers.submit(service.image, body))
            until(lambda: service.in_flight() >= len(responses), 90)
        reached = until(lambda: far(service), 300)
        service.call(nodes.lose, service.second)
        started = time.monotonic()
        responses += [callers.submit(service.image, body) for body in QUICK]
        until(lambda: service.second not in service.call(nodes.alive), 90)
        noticed = time.monotonic() - started
        images = [response.result() for response in responses]
    assert images == reference.images

    continued = {id: step for id, step, _ in service.continued()}
    repeated = {}
    for stage in STAGES:
        (survivor,) = service.stats(stage).values()
        expected = sum(replica.engine.steps for replica in reference.stats[stage].values())
        steps = survivor.engine.steps + reached[stage].engine.steps - expected
        repeated[stage] = steps - expected  # for the same images
        assert repeated[stage] <= 2 * SNAPSHOT_INTERVAL * len(reached[stage].engine.positions)
    print(f"Ray noticed after {noticed:.0f} s; all {len(images)} images made")
    positions = [pair for stats in reached.values() for pair in stats.engine.positions.items()]
    for id, at in positions:
        print(f"{id}: was at step {at}, continued at {continued.get(id)}")
        assert at < FAR or continued[id] > at - 2 * SNAPSHOT_INTERVAL
    print(f"steps repeated, without those since the last stats: {repeated}")


def test_a_new_node_replaces_a_dead_one(service: Service, reference: Reference) -> None:
    if service.second in service.call(nodes.alive):
        service.call(nodes.lose, service.second)
    new = service.call(nodes.add)
    until(lambda: new in service.stats("base") and new in service.stats("refiner"), 300)
    with ThreadPoolExecutor(len(QUICK)) as callers:
        assert list(callers.map(service.image, QUICK)) == reference.images[len(BODIES) :]
    assert any(service.stats(stage)[new].engine.finished for stage in STAGES)


def far(service: Service) -> dict[str, ReplicaStats] | None:
    """Return the stats of the second node's replicas once both have an image at step `FAR`."""
    replicas = {stage: service.stats(stage)[service.second] for stage in STAGES}
    steps = [max(stats.engine.positions.values(), default=0) for stats in replicas.values()]
    return replicas if min(steps) >= FAR else None
