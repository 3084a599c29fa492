"""`ChaosService`: an application of sleeping replicas, beside others or on a Ray of its own."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.cli.ray_environment import memory_environment
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.testing.faulty_service import FaultyArgs
from tests.e2e.chaos import ray_calls
from tests.e2e.chaos.load import Answer, Call, Load
from tests.e2e.chaos.processes import Processes
from tests.support.ports import free_port
from tests.support.waiting import until

_READY_S = 240.0


@dataclass(frozen=True, slots=True)
class ChaosService:
    """A running application: its address, its processes, and a way to call functions with Ray."""

    address: str
    app: str
    args: FaultyArgs
    processes: Processes
    call: Callable[..., Any]

    def answer(self, call: Call) -> Answer:
        """Send one request and wait for its answer."""
        with Load(self.address) as load:
            (answer,) = load.send([call])
            return answer.result()

    def health(self, timeout: float = 10) -> Any:
        """Return the body of /health; None while there is none."""
        try:
            return httpx.get(f"{self.address}/health", timeout=timeout).json()
        except (httpx.HTTPError, ValueError):
            return None

    def stats(self, stage: Stage) -> list[ReplicaStats]:
        """Return the stats of the stage's replicas that answer."""
        stats: list[ReplicaStats] = self.call(ray_calls.stats, self.app, stage)
        return stats

    def unwell(self, stage: Stage) -> list[str]:
        """Return what the stage's replicas that fail their health check say."""
        reasons: list[str] = self.call(ray_calls.unwell, self.app, stage)
        return reasons

    def steps(self) -> int:
        """Return the steps that the living replicas have taken."""
        return sum(stats.engine.steps for stage in Stage for stats in self.stats(stage))

    def finished(self, stage: Stage) -> dict[int, int]:
        """Return the images that each of the stage's replicas has finished, by process id."""
        return {stats.pid: stats.engine.finished for stats in self.stats(stage)}

    def made(self) -> int:
        """Return the images that the refiner's replicas have finished."""
        return sum(self.finished(Stage.REFINER).values())

    def is_busy(self, stage: Stage) -> bool:
        """Return whether any replica of the stage has a sample."""
        return any(stats.engine.positions for stats in self.stats(stage))

    def in_flight(self) -> dict[str, int]:
        """Return the step of every sample that is on some replica."""
        return {
            id: step
            for stage in Stage
            for stats in self.stats(stage)
            for id, step in stats.engine.positions.items()
        }

    def is_whole(self) -> bool:
        """Return whether every replica that there should be answers."""
        health = self.health()
        wanted = {"base": self.args.base, "refiner": self.args.refiner}
        return (
            health is not None
            and health.get("replicas") == wanted
            and len(self.processes.replicas("Ingress")) == self.args.ingress
        )

    def wait_whole(self, timeout: float = _READY_S) -> None:
        """Wait until every replica answers."""
        until(self.is_whole, timeout)

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until no replica has a sample."""
        until(lambda: not self.in_flight(), timeout)


@contextmanager
def shared_service(port: int, folder: Path, app: str, **args: Any) -> Iterator[ChaosService]:
    """Deploy an application beside others, on the Ray and the proxy of this process."""
    given = _args(folder, args)
    ray_calls.deploy(app, f"/{app}", given)
    processes = Processes(app)
    service = ChaosService(f"http://127.0.0.1:{port}/{app}", app, given, processes, _call_here)
    try:
        service.wait_whole()
        yield service
    finally:
        ray_calls.delete(app)


@dataclass(frozen=True, slots=True)
class OwnRay:
    """A Ray of its own in another process, whose proxy and controller may be killed too."""

    port: int  # of the proxy
    pid: int
    call: Callable[..., Any]


@contextmanager
def own_ray() -> Iterator[OwnRay]:
    """Start a Ray in a process of its own."""
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="aura-") as home,  # a short name: sockets lie in it
        ProcessPoolExecutor(1, spawn) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", home)  # or every Ray started here would join this one
        for name, value in memory_environment(Settings().max_body_mib, os.environ).items():
            patch.setenv(name, os.environ.get(name, value))  # as `aura up` does

        def call(function: Callable[..., Any], *values: Any) -> Any:
            return process.submit(function, *values).result(_READY_S)

        try:
            call(ray_calls.start, port)
            yield OwnRay(port, call(os.getpid), call)
        finally:
            call(ray_calls.stop)


@contextmanager
def own_service(ray: OwnRay, folder: Path, **args: Any) -> Iterator[ChaosService]:
    """Deploy an application, the only one on a Ray of its own."""
    given = _args(folder, args)
    processes = Processes("chaos", ray.pid)
    service = ChaosService(f"http://127.0.0.1:{ray.port}", "chaos", given, processes, ray.call)
    try:
        ray.call(ray_calls.deploy, "chaos", "/", given)
        service.wait_whole()
        yield service
    finally:
        ray.call(ray_calls.delete, "chaos")


@contextmanager
def other_ingress(ray: OwnRay, service: ChaosService) -> Iterator[str]:
    """Deploy an ingress of its own over the service's stages; yield what its routes begin with."""
    app = "apart"
    try:
        ray.call(ray_calls.deploy_ingress, app, f"/{app}", service.args, service.app)
        yield f"/{app}"
    finally:
        ray.call(ray_calls.delete, app)


def _args(folder: Path, args: dict[str, Any]) -> FaultyArgs:
    return FaultyArgs(ledger=folder / "ledger.sqlite", strikes=folder / "strikes", **args)


def _call_here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
