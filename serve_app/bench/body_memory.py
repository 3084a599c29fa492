"""The memory that large request bodies take, and give back: of the ingress, and of Serve's proxy.

Bodies of the greatest legal size arrive together, several times over. The stages are instant ones,
so that nothing else needs memory.
"""

import contextlib
import http.client
import json
import multiprocessing
import threading
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import uvicorn
from ray import serve
from rich.console import Console
from rich.table import Table

from serve_app.bench.local_ray import free_port, local_ray
from serve_app.bench.sample_pictures import draw_picture
from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.service.events import ReplicaStats, StageEvent
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import BODY_LIMIT, AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.runtime.png import encode_png
from serve_app.testing.instant_stage import InstantStage
from serve_app.testing.sleeping_stage import ingress_config, service_info

MIB = 2**20
_SAMPLE_SECONDS = 0.05
_DRAIN_SECONDS = 1.0
_WARM_UP_BODY = 2**16  # bytes; imports and pools are there before the first measurement
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Resident:
    """The resident memory of a process in MiB: its own, and what it maps of Ray's object store."""

    own: float
    shared: float

    @classmethod
    def of(cls, process: psutil.Process) -> "Resident":
        """Read it now."""
        info = process.memory_info()
        return cls((info.rss - info.shared) / MIB, info.shared / MIB)

    @property
    def all(self) -> float:
        """What `ps` and `top` show as RSS."""
        return self.own + self.shared


@dataclass(slots=True)
class Round:
    """One process before a round of bodies, at its peak, and some time after it."""

    before: Resident
    peak: float = 0.0
    after: Resident | None = None
    statuses: dict[int, int] = field(default_factory=dict)


def measure(*, bodies: int, rounds: int, wait: float, on_ray: bool) -> None:
    """Print the resident memory of the processes that a body passes through, round by round."""
    body = largest_body()
    with _on_ray() if on_ray else _on_uvicorn() as (port, processes):
        _send(port, json.dumps({"prompt": "a", "images": [_base64(_noise(160))]}).encode())
        time.sleep(2)
        measured: dict[str, list[Round]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, round_ in _one_round(port, processes, body, bodies, wait).items():
                measured[name].append(round_)
    _print(measured, bodies, len(body), wait)


def largest_body(limit: int = BODY_LIMIT) -> bytes:
    """Return a body for /refine that is almost as large as one may be."""
    side = int((limit * 0.75 / 3) ** 0.5) - 6
    while True:
        body = json.dumps({"prompt": "a", "imageCount": 1, "images": [_base64(_noise(side))]})
        if len(body) <= limit:
            return body.encode()
        side -= 8


def _noise(side: int) -> bytes:
    """Return a PNG that can't be compressed."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return encode_png(pixels)


def _base64(file: bytes) -> str:
    return b64encode(file).decode()


def _one_round(
    port: int, processes: dict[str, psutil.Process], body: bytes, bodies: int, wait: float
) -> dict[str, Round]:
    rounds = {name: Round(Resident.of(process)) for name, process in processes.items()}
    closing = threading.Event()

    def sample() -> None:
        while not closing.wait(_SAMPLE_SECONDS):
            for name, process in processes.items():
                rounds[name].peak = max(rounds[name].peak, Resident.of(process).all)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    with ThreadPoolExecutor(bodies) as clients:
        statuses = list(clients.map(lambda _: _send(port, body), range(bodies)))
    closing.set()
    sampler.join()
    time.sleep(wait)
    for name, process in processes.items():
        rounds[name].after = Resident.of(process)
        rounds[name].statuses = {status: statuses.count(status) for status in sorted(set(statuses))}
    return rounds


def _send(port: int, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/refine", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@contextlib.contextmanager
def _on_uvicorn() -> Iterator[tuple[int, dict[str, psutil.Process]]]:
    """Run the API in a process of its own, without Ray."""
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
    server.start()
    try:
        _wait_alive(port)
        yield port, {"ingress": psutil.Process(server.pid)}
    finally:
        server.kill()
        server.join()


def _serve(port: int) -> None:
    """Serve the API over stages that finish at once."""
    info = service_info(refiner=True)
    stage = _LocalStage(InstantStage(_picture()))
    conductor = Conductor(stage, stage, info.models, refiner_name=info.refiner)
    config = HttpConfig(info=info, access_policy=AccessPolicy())
    ingress = open_ingress(config, conductor, Ledger(None), InMemoryMeter(), _cancel_nowhere)
    uvicorn.run(ingress.asgi, port=port, log_level="warning", lifespan="off")


@contextlib.contextmanager
def _on_ray() -> Iterator[tuple[int, dict[str, psutil.Process]]]:
    """Run the service's own graph on Ray."""
    with local_ray(0) as (port, folder):
        config = ingress_config(refiner=True)
        base, refiner = (
            deploy_stage(
                InstantStage, name, DeploymentScale(), images=4, gpus=0, drain=_DRAIN_SECONDS
            ).bind(_picture())
            for name in ("BaseGenerator", "Refiner")
        )
        place = LedgerFile(folder / "ledger.sqlite")
        serve.run(
            bind_graph(config, place, base, refiner, DeploymentScale(), _DRAIN_SECONDS),
            name="bench",
        )
        yield (
            port,
            {
                "ingress": _process("ray::ServeReplica:bench:Ingress"),
                "proxy": _process("ray::ProxyActor"),
            },
        )


def _process(title: str) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if " ".join(process.cmdline()).startswith(title)
    ]
    return found


class _LocalStage:
    """A stage of one replica in this process."""

    def __init__(self, replica: InstantStage) -> None:
        self._replica = replica

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        async for event in self._replica.advance(sample, segment):
            yield event

    async def watch(self, id: str, *, watched: bool) -> None:
        pass

    async def take(self, id: str) -> list[ImageSnapshot]:
        await self._replica.take(id, "bench")
        return []

    async def stats(self) -> list[ReplicaStats]:
        return [await self._replica.stats()]


def _picture() -> bytes:
    return encode_png(draw_picture("grain", 1024))


async def _cancel_nowhere(job: str) -> None:
    """Cancel nothing: there is one process."""


def _wait_alive(port: int) -> None:
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/livez")
            connection.getresponse().read()
            return
        time.sleep(0.1)


def _print(measured: dict[str, list[Round]], bodies: int, size: int, wait: float) -> None:
    table = Table(
        title=f"{bodies} bodies of {size / MIB:.1f} MiB at once on /refine, MiB resident",
        caption=f"In brackets the part that is Ray's object store; after: {wait:.0f} s later",
    )
    for column in ("", "round", "before", "peak", "after", "statuses"):
        table.add_column(column, justify="right")
    for name, rounds in measured.items():
        for number, measured_round in enumerate(rounds, 1):
            assert measured_round.after is not None
            statuses = measured_round.statuses.items()
            table.add_row(
                name,
                str(number),
                f"{measured_round.before.all:.0f} \\[{measured_round.before.shared:.0f}]",
                f"{measured_round.peak:.0f}",
                f"{measured_round.after.all:.0f} \\[{measured_round.after.shared:.0f}]",
                ", ".join(f"{count} x {status}" for status, count in statuses),
            )
    console.print(table)
