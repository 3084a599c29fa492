"""A cluster of two nodes, one of which dies while pictures are made on both."""

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

SNAPSHOT_EVERY = 5
FAR = 30  # the step that an image has reached on the node that dies: of 80, or of 20 to 100
ASKED = [LONG | {"seed": n, "handoff": handoff} for n, handoff in enumerate((0.8, 0.8, 0.2, 0.2))]
QUICK = [LONG | {"seed": n, "steps": 4, "handoff": 0.5} for n in range(2)]
CONTINUED = re.compile(r"(\S+): .* is gone; continuing at step (\d+) of (\d+)")


@dataclass(frozen=True)
class Service:
    """The running service: its address, its second node, and the process that has joined them."""

    address: str
    second: str
    logs: Path
    process: ProcessPoolExecutor

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of `tests.support.ray_nodes` gives."""
        return self.process.submit(function, *args).result(120)

    def facts(self, stage: str) -> dict[str, ReplicaStats]:
        found: dict[str, ReplicaStats] = self.ask(nodes.facts, stage)
        return found

    def picture(self, asked: dict[str, Any]) -> str:
        """As the answer has it; fails when there is none."""
        answer = httpx.post(f"{self.address}/generate", json=asked, timeout=600)
        assert answer.status_code == 201, answer.text
        (picture,) = answer.json()["images"]
        return str(picture)

    def taken(self) -> int:
        """How many images are on some replica."""
        return sum(len(f.positions) for stage in STAGES for f in self.facts(stage).values())

    def replicas(self) -> Any:
        """How many of each stage /health counts; None while there is nobody to answer."""
        try:
            return httpx.get(f"{self.address}/health", timeout=10).json()["replicas"]
        except (httpx.HTTPError, ValueError):  # the proxy waits for the ingress
            return None

    def continued(self) -> list[tuple[str, int, int]]:
        """The images continued so far, each with the step it went on at, and its leg's last."""
        logs = "".join(file.read_text() for file in self.logs.glob("worker-*.err"))
        return [(id, int(step), int(stop)) for id, step, stop in CONTINUED.findall(logs)]


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    """Two base replicas and two refiners: one of each on the head node, and on a second one."""
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
class Made:
    """Pictures, and the facts of all replicas by stage and node when they were made."""

    pictures: list[str]
    facts: dict[str, dict[str, ReplicaStats]]


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> Made:
    """The pictures of `ASKED` and `QUICK`, all there was to do so far."""
    with ThreadPoolExecutor(len(ASKED + QUICK)) as callers:
        pictures = list(callers.map(service.picture, ASKED + QUICK))
    return Made(pictures, {stage: service.facts(stage) for stage in STAGES})


def test_images_are_made_on_both_nodes(service: Service, undisturbed: Made) -> None:
    for stage in STAGES:
        finished = {node: one.finished for node, one in undisturbed.facts[stage].items()}
        print(f"{stage}: {finished}")
        assert set(finished) == service.ask(nodes.alive)
        assert min(finished.values()) > 0
        assert sum(finished.values()) == len(undisturbed.pictures)


def test_a_node_that_dies_costs_its_images_a_few_steps_and_no_request(
    service: Service, undisturbed: Made
) -> None:
    with ThreadPoolExecutor(len(ASKED + QUICK)) as callers:
        asked = []
        for body in ASKED:  # in this order, so that either node has some of each kind
            asked.append(callers.submit(service.picture, body))
            until(lambda: service.taken() >= len(asked), 90)
        reached = until(lambda: far(service), 300)
        service.ask(nodes.lose, service.second)
        began = time.monotonic()
        asked += [callers.submit(service.picture, body) for body in QUICK]
        until(lambda: service.second not in service.ask(nodes.alive), 90)
        noticed = time.monotonic() - began
        pictures = [one.result() for one in asked]
    assert pictures == undisturbed.pictures

    continued = {id: step for id, step, _ in service.continued()}
    repeated = {}
    for stage in STAGES:
        (survivor,) = service.facts(stage).values()
        before = undisturbed.facts[stage]
        steps = survivor.steps + reached[stage].steps - sum(f.steps for f in before.values())
        repeated[stage] = steps - sum(f.steps for f in before.values())  # for the same pictures
        assert repeated[stage] <= 2 * SNAPSHOT_EVERY * len(reached[stage].positions)
    print(f"Ray noticed after {noticed:.0f} s; {len(pictures)} images of {len(pictures)} made")
    for id, at in (pair for facts in reached.values() for pair in facts.positions.items()):
        print(f"{id}: was at step {at}, continued at {continued.get(id)}")
        assert at < FAR or continued[id] > at - 2 * SNAPSHOT_EVERY
    print(f"steps repeated, but for those since the last look: {repeated}")


def test_a_new_node_takes_the_place_of_one_that_died(service: Service, undisturbed: Made) -> None:
    if service.second in service.ask(nodes.alive):
        service.ask(nodes.lose, service.second)
    new = service.ask(nodes.add)
    until(lambda: new in service.facts("base") and new in service.facts("refiner"), 300)
    with ThreadPoolExecutor(len(QUICK)) as callers:
        assert list(callers.map(service.picture, QUICK)) == undisturbed.pictures[len(ASKED) :]
    assert any(service.facts(stage)[new].finished for stage in STAGES)


def far(service: Service) -> dict[str, ReplicaStats] | None:
    """The facts of the second node's replicas, by stage, once both have taken an image far."""
    there = {stage: service.facts(stage)[service.second] for stage in STAGES}
    at = [max(one.positions.values(), default=0) for one in there.values()]
    return there if min(at) >= FAR else None
