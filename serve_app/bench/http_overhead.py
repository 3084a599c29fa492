"""What a request costs outside the engine: the real graph on Ray, over HTTP, with stages that
return at once.

Knows no model: the stages here hand out one picture, encoded beforehand. The parts are the laps of
the service's own Server-Timing header; what the caller waited beyond them is HTTP.
"""

import http.client
import json
import logging
import os
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import ReplicaStats, SegmentDone
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.runtime.png import encode_png

_SIDE = 1024
_WARM = 10
_ASKED = "/generate"
_DRAIN = 1.0  # seconds a replica may finish in
_FLOOR = "Ray alone"  # the same hops and bytes, and nothing of ours
_PAUSE = 0.15  # seconds between requests: what the ledger hears of the last one is over
_PARTS = ("validate", "make", "write", "HTTP")
_MEANING = {
    "validate": "validation",
    "make": "hand-offs",
    "write": "base64",
}
console = Console(highlight=False)


class InstantStage:
    """A stage whose replicas are done before they begin."""

    def __init__(self, png: bytes) -> None:
        self._png = png
        self._latents = np.zeros((4, _SIDE // 8, _SIDE // 8), np.float32)

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        """The sample at the end of its leg, with latents as large as real ones."""
        latents = None if leg.last else self._latents
        done = replace(sample, index=leg.stop, latents=latents, inputs=NO_INPUTS, profile="none")
        yield SegmentDone(done, self._png if leg.last else None, GpuTime(), CostTable())

    async def stats(self) -> ReplicaStats:
        """Nothing was done."""
        return ReplicaStats(os.getpid(), "none", "", 0, 0, 0, 0, 0.0, 0.0, 0.0, CostTable(), {})


class Bare:
    """The same way through Ray Serve with nothing of ours on it: what any service would pay."""

    def __init__(self, base: Any, refiner: Any, answer: bytes) -> None:
        self._handles = [handle.options(stream=True) for handle in (base, refiner)]
        self._answer = answer
        self._sample = _sample()

    def __serve_build_asgi_app__(self) -> Any:
        async def make(request: Request) -> Response:
            await request.body()
            legs = (
                StageSegment(Stage.BASE, 24, last=False),
                StageSegment(Stage.REFINER, 30, last=True),
            )
            for handle, leg in zip(self._handles, legs, strict=True):
                async for _ in handle.advance.remote(self._sample, leg):
                    pass
            return Response(self._answer, 201)

        return Starlette(routes=[Route("/", make, methods=["POST"])])


@dataclass(frozen=True, slots=True)
class Case:
    """A request that is sent again and again."""

    label: str
    route: str
    body: str
    accept: str = "application/json"


def compare(*, runs: int) -> None:
    """Prints, case by case, the milliseconds of each part of a request."""
    png = encode_png(draw_picture("grain", _SIDE))
    wish = {"prompt": "a red fox in the snow", "seed": 7, "imageCount": 1}
    asked = json.dumps(wish)
    refining = json.dumps(wish | {"images": [b64encode(png).decode()]})
    cases = [
        Case(_ASKED, "/generate", asked),
        Case(_FLOOR, "/bare/", asked),
        Case("bare PNG", "/generate", asked, accept="image/png"),
        Case("/refine", "/refine", refining),
    ]
    ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        with console.status("starting Ray"), tempfile.TemporaryDirectory() as folder:
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(_graph(png, Path(folder) / "ledger.sqlite"), name="bench")
            serve.run(_bare(png), name="bare", route_prefix="/bare")
            outcomes = _measure(cases, port, runs)
    finally:
        serve.shutdown()
        ray.shutdown()
    _print(outcomes, runs, len(png))


def _graph(png: bytes, ledger: Path) -> Any:
    scale = DeploymentScale()
    facts = ServiceInfo(
        models=(ModelInfo("none", _SIDE, NoiseConfig.from_scheduler_config({})),),
        refiner="none",
        device="none",
        precision="none",
        default_image_count=1,
    )
    base, refiner = _stages(png)
    http = partial(open_ingress, HttpConfig(info=facts, access_policy=AccessPolicy()))
    return bind_graph(
        IngressConfig(http, facts.models, facts.refiner), ledger, base, refiner, scale, _DRAIN
    )


def _stages(png: bytes) -> list[Any]:
    return [
        deploy_stage(InstantStage, name, DeploymentScale(), images=4, gpus=0, drain=_DRAIN).bind(
            png
        )
        for name in ("BaseGenerator", "Refiner")
    ]


def _bare(png: bytes) -> Any:
    deployment: Any = serve.deployment(serve.ingress()(Bare))
    answer = b'{"images":["' + b64encode(png) + b'"]}'
    options = deployment.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
    return options.bind(*_stages(png), answer)


def _sample() -> Sample[Any]:
    spec = ImageSpec(prompt="a", seed=7, width=_SIDE, height=_SIDE, steps=30, guidance=6.9)
    schedule = make_schedule(
        NoiseConfig.from_scheduler_config({}), spec.sampler, spec.steps, None, spec.handoff
    )
    return new_sample("bare", spec, schedule, Stage.BASE)


def _measure(cases: Sequence[Case], port: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """By case and part, milliseconds, one number a run. The cases take turns, so that a noisy
    machine is noisy for all; the first runs warm up."""
    took: dict[str, dict[str, list[float]]] = {
        case.label: {part: [] for part in (*_PARTS, "whole")} for case in cases
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for run in track(range(_WARM + runs), "asking", console=console, transient=True):
        for case in cases:
            time.sleep(_PAUSE)
            parts = _ask(connection, case)
            if run >= _WARM:
                for part, milliseconds in parts.items():
                    took[case.label][part].append(milliseconds)
    connection.close()
    return took


def _ask(connection: http.client.HTTPConnection, case: Case) -> dict[str, float]:
    """Milliseconds of one request, part by part."""
    headers = {"Content-Type": "application/json", "Accept": case.accept}
    began = time.perf_counter()
    connection.request("POST", case.route, case.body, headers)
    answer = connection.getresponse()
    answer.read()
    whole = (time.perf_counter() - began) * 1000
    if answer.status != 201:
        raise RuntimeError(f"{case.route} answered {answer.status}")
    laps = _laps(answer.headers.get("Server-Timing", ""))
    return {**laps, "HTTP": whole - sum(laps.values()), "whole": whole}


def _laps(header: str) -> dict[str, float]:
    parts = (part.strip().split(";dur=") for part in header.split(",") if part)
    return {name: float(duration) for name, duration in parts}


def _print(outcomes: dict[str, dict[str, list[float]]], runs: int, size: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table = Table(
        title=f"A request outside the engine, {_SIDE} x {_SIDE}, on {cores} cores",
        caption=f"{runs} of each in turn, a picture of {size / 1e6:.2f} MB: median ms \\[5th, 95th "
        "percentile]. Hand-offs: base, refiner, metadata. HTTP: proxy, transfer, client. "
        "Ray alone: the same hops and bytes through Ray Serve, with nothing of ours",
    )
    table.add_column("")
    for label in outcomes:
        table.add_column(label, justify="right")
    for part in (*_PARTS, "whole"):
        cells = [_cell(took[part]) if took[part] else "" for took in outcomes.values()]
        table.add_row(_MEANING.get(part, part), *cells, style="bold" if part == "whole" else None)
    console.print(table)
    ours, floor = outcomes[_ASKED]["whole"], outcomes[_FLOOR]["whole"]
    over = [a - b for a, b in zip(ours, floor, strict=True)]
    console.print(f"{_ASKED} over {_FLOOR}, in pairs, ms: {_cell(over).replace(chr(10), ' ')}")


def _cell(took: list[float]) -> str:
    cuts = statistics.quantiles(took, n=20)
    return f"{statistics.median(took):.1f}\n[dim]\\[{cuts[0]:.1f}, {cuts[-1]:.1f}][/]"
