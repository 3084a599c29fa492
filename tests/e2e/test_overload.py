"""Five times the capacity over HTTP, with deadlines: what is made in time, and how refusals look.

Two base replicas and two refiners whose networks sleep; everything else is real.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from ray import serve

from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.summary import percentile
from serve_app.testing.sleeping_stage import (
    NATIVE_SIZE,
    SleepingStage,
    ingress_config,
    stage_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.long]
APP, ROUTE = "overloaded", "/overloaded"
ORIGIN = "http://localhost:3000"
BATCH, REPLICAS = 4, 2
STEPS, HANDOFF = 30, 0.5
SPEED = GpuSpeed()
INFO = ServiceInfo(
    models=ingress_config(refiner=True).models,
    refiner=str(Stage.REFINER),
    device="none",
    precision="none",
    default_image_count=1,
)
ALLOWED_S = 15.0
LOAD = 5.0  # times the capacity
SECONDS = 60.0  # of overload


@dataclass(frozen=True, slots=True)
class Answer:
    """One response: when it was asked for and how it came."""

    at: float
    seconds: float
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's code, or what else the body is."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return "not JSON"
        return str(content["error"]["code"]) if "error" in content else "made"


def images_per_second() -> float:
    """Return the rate of images that full batches of the slower stage make."""
    side = 4 * NATIVE_SIZE
    base = STEPS / 2 * SPEED.step(Stage.BASE, side, side, 2 * BATCH) / BATCH + SPEED.prompt_seconds
    refiner = STEPS / 2 * SPEED.step(Stage.REFINER, side, side, 2 * BATCH) / BATCH
    refiner += SPEED.prompt_seconds + SPEED.decode(side, side)
    return REPLICAS / max(base, refiner)


async def post(port: int, number: int, body: Mapping[str, object], began: float) -> Answer:
    content = json.dumps({"prompt": "a", "imageCount": 1, "seed": number, **body}).encode()
    head = (
        f"POST {ROUTE}/generate HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: {ORIGIN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    at = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    raw = await reader.read()
    writer.close()
    seconds = time.perf_counter() - at
    top, _, answer = raw.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return Answer(at - began, seconds, int(first.split()[1]), headers, answer)


async def probe(port: int, seconds: list[float], began: float) -> None:
    """Ask for /health once a second."""
    while True:
        at = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET {ROUTE}/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        await reader.read()
        writer.close()
        seconds.append(time.perf_counter() - at)
        await asyncio.sleep(1)


async def overload(port: int, rate: float, seconds: float) -> tuple[list[Answer], list[float]]:
    """Send requests at a steady rate, and the refused ones again, each once, after the load."""
    body = {
        "steps": STEPS,
        "handoff": HANDOFF,
        "width": NATIVE_SIZE,
        "height": NATIVE_SIZE,
        "timeoutSeconds": ALLOWED_S,
    }
    began, probes = time.perf_counter(), list[float]()
    probing = asyncio.create_task(probe(port, probes, began))
    calls = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        calls.append(asyncio.create_task(post(port, number, body, began)))
    answers = await asyncio.gather(*calls)
    probing.cancel()
    return answers, probes


def report(answers: Sequence[Answer], probes: Sequence[float], capacity: float) -> float:
    codes: dict[str, list[float]] = {}
    for answer in answers:
        codes.setdefault(f"{answer.status} {answer.code}", []).append(answer.seconds)
    # Of the time in which the service is full: from when the first could be done.
    made = [a for a in answers if a.status == 201 and a.at + a.seconds <= SECONDS + ALLOWED_S]
    began = min((a.at + a.seconds for a in made), default=0.0)
    ended = max((a.at + a.seconds for a in made), default=1.0)
    goodput = len(made) / (ended - began + STEPS * 0.137 / 2 + 1e-9) / capacity
    print(f"\n{len(answers)} requests at {LOAD:g}x the capacity of {capacity:.2f} images/s")
    print(f"{len(made)} made in {ended - began:.0f} s: goodput {goodput:.0%} of capacity")
    for code, seconds in sorted(codes.items()):
        ordered = sorted(seconds)
        print(
            f"  {code:26} {len(ordered):5}  p50 {1000 * percentile(ordered, 0.5):8.1f} ms"
            f"  p99 {1000 * percentile(ordered, 0.99):8.1f} ms"
        )
    ordered = sorted(probes)
    print(f"  /health p99 {1000 * percentile(ordered, 0.99):.0f} ms of {len(ordered)}")
    retries = sorted(int(a.headers["retry-after"]) for a in answers if "retry-after" in a.headers)
    if retries:
        print(f"  Retry-After {retries[0]} to {retries[-1]} s")
    return goodput


@pytest.fixture
def port(cluster: int, tmp_path: Path) -> Iterator[int]:
    """Deploy the service and return its port."""
    base, refiner = (
        deploy_stage(
            SleepingStage,
            name,
            DeploymentScale(min_replicas=REPLICAS),
            images=BATCH,
            gpus=1,
            drain=5,
        ).bind(stage_config(stage, images=BATCH), SPEED, RayMeter)
        for name, stage in (("BaseGenerator", Stage.BASE), ("Refiner", Stage.REFINER))
    )
    config = ingress_config(refiner=True)
    http = HttpConfig(INFO, access_policy=AccessPolicy(origins=(ORIGIN,)))
    config = replace(config, open_http=partial(open_ingress, http))
    graph = bind_graph(
        config, LedgerFile(tmp_path / "ledger.sqlite"), base, refiner, DeploymentScale(), 5
    )
    serve.run(graph, name=APP, route_prefix=ROUTE)
    yield cluster
    serve.delete(APP)


def test_five_times_the_capacity_with_deadlines(port: int) -> None:
    capacity = images_per_second()
    warm = {"steps": STEPS, "handoff": HANDOFF, "width": NATIVE_SIZE, "height": NATIVE_SIZE}

    async def run() -> tuple[list[Answer], list[float]]:
        await asyncio.gather(*(post(port, n, warm, 0.0) for n in range(8)))
        return await overload(port, LOAD * capacity, SECONDS)

    answers, probes = asyncio.run(run())
    goodput = report(answers, probes, capacity)
    refused = [answer for answer in answers if answer.status == 503]
    assert goodput >= 0.9  # of full batches that never wait for the processor
    assert all(answer.code == "OVERLOADED" for answer in refused)
    assert all("retry-after" in answer.headers for answer in refused)
    assert all(answer.headers.get("access-control-allow-origin") == ORIGIN for answer in answers)
