"""The overhead of a request outside the engine: the real graph on Ray, over HTTP.

The stages return one encoded PNG at once. The parts are those of the service's Server-Timing
header; the rest of the time that the client waits is HTTP.
"""

import http.client
import json
import logging
import os
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from rich.console import Console
from rich.progress import track
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.bench.local_ray import free_port
from serve_app.bench.sample_pictures import draw_picture
from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.runtime.png import encode_png
from serve_app.testing.instant_stage import InstantStage

_SIDE = 1024
_WARM_UP_RUNS = 10
_GENERATE = "/generate"
_DRAIN_SECONDS = 1.0
_RAY_ALONE = "Ray alone"  # the same hops and bytes, without the service
_PAUSE = 0.15  # seconds between requests, in which the ledger writes of the last one end
_PARTS = ("validate", "make", "write", "HTTP")
_MEANING = {
    "validate": "validation",
    "make": "hand-offs",
    "write": "base64",
}
console = Console(highlight=False)


class RayAlone:
    """The same calls through Ray Serve without the service: the lower bound of any service."""

    def __init__(self, base: Any, refiner: Any, body: bytes) -> None:
        self._handles = [handle.options(stream=True) for handle in (base, refiner)]
        self._body = body
        self._sample = _sample()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI app, as Ray Serve expects of an ingress class."""

        async def make(request: Request) -> Response:
            await request.body()
            segments = (
                StageSegment(Stage.BASE, 24, last=False),
                StageSegment(Stage.REFINER, 30, last=True),
            )
            for handle, segment in zip(self._handles, segments, strict=True):
                async for _ in handle.advance.remote(self._sample, segment):
                    pass
            return Response(self._body, 201)

        return Starlette(routes=[Route("/", make, methods=["POST"])])


@dataclass(frozen=True, slots=True)
class Case:
    """A request that is repeated."""

    label: str
    route: str
    body: str
    accept: str = "application/json"


def compare(*, runs: int) -> None:
    """Print the milliseconds of each part of a request, case by case."""
    png = encode_png(draw_picture("grain", _SIDE))
    fields = {"prompt": "a red fox in the snow", "seed": 7, "imageCount": 1}
    generate = json.dumps(fields)
    refine = json.dumps(fields | {"images": [b64encode(png).decode()]})
    cases = [
        Case(_GENERATE, "/generate", generate),
        Case(_RAY_ALONE, "/ray/", generate),
        Case("bare PNG", "/generate", generate, accept="image/png"),
        Case("/refine", "/refine", refine),
    ]
    ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        with console.status("starting Ray"), tempfile.TemporaryDirectory() as folder:
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(_graph(png, Path(folder) / "ledger.sqlite"), name="bench")
            serve.run(_ray_alone(png), name="ray", route_prefix="/ray")
            timings = _measure(cases, port, runs)
    finally:
        serve.shutdown()
        ray.shutdown()
    _print(timings, runs, len(png))


def _graph(png: bytes, ledger: Path) -> Any:
    """Return the service's own graph over instant stages."""
    scale = DeploymentScale()
    info = ServiceInfo(
        models=(ModelInfo("none", _SIDE, NoiseConfig.from_scheduler_config({})),),
        refiner="none",
        device="none",
        precision="none",
        default_image_count=1,
    )
    base, refiner = _stages(png)
    http = partial(open_ingress, HttpConfig(info=info, access_policy=AccessPolicy()))
    config = IngressConfig(http, info.models, info.refiner)
    return bind_graph(config, LedgerFile(ledger), base, refiner, scale, _DRAIN_SECONDS)


def _stages(png: bytes) -> list[Any]:
    return [
        deploy_stage(
            InstantStage, name, DeploymentScale(), images=4, gpus=0, drain=_DRAIN_SECONDS
        ).bind(png)
        for name in ("BaseGenerator", "Refiner")
    ]


def _ray_alone(png: bytes) -> Any:
    """Return an application that only makes the same calls."""
    deployment: Any = serve.deployment(serve.ingress()(RayAlone))
    body = b'{"images":["' + b64encode(png) + b'"]}'
    options = deployment.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
    return options.bind(*_stages(png), body)


def _sample() -> Sample[Any]:
    spec = ImageSpec(prompt="a", seed=7, width=_SIDE, height=_SIDE, steps=30, guidance=6.9)
    schedule = make_schedule(
        NoiseConfig.from_scheduler_config({}), spec.sampler, spec.steps, None, spec.handoff
    )
    return new_sample("ray", spec, schedule, Stage.BASE)


def _measure(cases: Sequence[Case], port: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by case and part, one value per run.

    The cases take turns, so that a noisy machine disturbs all of them; the first runs warm up.
    """
    timings: dict[str, dict[str, list[float]]] = {
        case.label: {part: [] for part in (*_PARTS, "whole")} for case in cases
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for run in track(range(_WARM_UP_RUNS + runs), "requests", console=console, transient=True):
        for case in cases:
            time.sleep(_PAUSE)
            parts = _send(connection, case)
            if run >= _WARM_UP_RUNS:
                for part, milliseconds in parts.items():
                    timings[case.label][part].append(milliseconds)
    connection.close()
    return timings


def _send(connection: http.client.HTTPConnection, case: Case) -> dict[str, float]:
    """Send one request, and return the milliseconds of its parts."""
    headers = {"Content-Type": "application/json", "Accept": case.accept}
    start = time.perf_counter()
    connection.request("POST", case.route, case.body, headers)
    response = connection.getresponse()
    response.read()
    whole = (time.perf_counter() - start) * 1000
    if response.status != 201:
        raise RuntimeError(f"{case.route} returned status {response.status}, expected 201")
    laps = _laps(response.headers.get("Server-Timing", ""))
    return {**laps, "HTTP": whole - sum(laps.values()), "whole": whole}


def _laps(header: str) -> dict[str, float]:
    """Return the milliseconds of each part in a Server-Timing header."""
    parts = (part.strip().split(";dur=") for part in header.split(",") if part)
    return {name: float(duration) for name, duration in parts}


def _print(timings: dict[str, dict[str, list[float]]], runs: int, size: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table = Table(
        title=f"Overhead of a {_SIDE} x {_SIDE} request outside the engine, on {cores} cores",
        caption=f"{runs} runs of each, in turn, with an image of {size / 1e6:.2f} MB: median ms "
        "\\[5th, 95th percentile]. Hand-offs: base, refiner, metadata. HTTP: proxy, transfer, "
        "client. Ray alone: the same hops and bytes through Ray Serve, without the service",
    )
    table.add_column("")
    for label in timings:
        table.add_column(label, justify="right")
    for part in (*_PARTS, "whole"):
        cells = [_cell(parts[part]) if parts[part] else "" for parts in timings.values()]
        table.add_row(_MEANING.get(part, part), *cells, style="bold" if part == "whole" else None)
    console.print(table)
    ours, bound = timings[_GENERATE]["whole"], timings[_RAY_ALONE]["whole"]
    excess = [a - b for a, b in zip(ours, bound, strict=True)]
    cell = _cell(excess).replace("\n", " ")
    console.print(f"{_GENERATE} minus {_RAY_ALONE}, paired, ms: {cell}")


def _cell(milliseconds: list[float]) -> str:
    cuts = statistics.quantiles(milliseconds, n=20)
    return f"{statistics.median(milliseconds):.1f}\n[dim]\\[{cuts[0]:.1f}, {cuts[-1]:.1f}][/]"
