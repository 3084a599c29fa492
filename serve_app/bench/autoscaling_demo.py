"""Replicas that come and go with the work: the real application on four make-believe GPUs, over
HTTP, under a load that grows, changes its character and goes.

Knows no model: its replicas sleep for as long as a step would take.
"""

import threading
import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema
from rich.console import Console
from rich.table import Table

from serve_app.bench.load_generator import Response, replay
from serve_app.bench.local_ray import local_ray
from serve_app.bench.timeline import TimelinePoint, plot_timeline
from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import POLICY
from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import ReplicaState, serve_client
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival, RequestMix, Workload, draw_trace
from serve_app.testing.sleeping_stage import SleepingStage, ingress_config, stage_config

GPUS = 4
_APP = "bench"
_SCALES = {
    Stage.BASE: DeploymentScale(max_replicas=3),
    Stage.REFINER: DeploymentScale(max_replicas=2),
}
_NAMES = {Stage.BASE: "BaseGenerator", Stage.REFINER: "Refiner"}
_AIMS = {"downscale_delay_s": 10}  # seconds; so few that a bench may wait for them
_COSTS = GpuSpeed()
_IMAGES = 4  # that step together
_DRAIN = 60.0
_PARTS = (  # of the load: share of its time, images a second, where base hands over
    (0.10, 0.25, 0.8),
    (0.35, 2.2, 1.0),
    (0.25, 1.6, 0.2),
    (0.30, 0.25, 0.8),
)
_ROWS = 5.0  # seconds between two lines of the table
console = Console(highlight=False)


class Bench(BaseModel):
    """The args of the application that is measured."""

    ledger: str


def build(args: Bench) -> Application:
    """The service's own graph, over stages that sleep."""
    base, refiner = (
        deploy_stage(
            SleepingStage, name, _SCALES[stage], images=_IMAGES, gpus=1, drain=_DRAIN
        ).bind(stage_config(stage, images=_IMAGES), _COSTS, RayMeter)
        for stage, name in _NAMES.items()
    )
    config = ingress_config(refiner=True, pool=GPUS)
    return bind_graph(config, Path(args.ledger), base, refiner, DeploymentScale(), _DRAIN)


def run(*, seconds: float, seed: int, output: Path) -> None:
    """Prints how many replicas there were for how much work, and writes the picture of it."""
    trace = load(seconds, seed)
    with running() as port, _watching() as moments:
        began = time.perf_counter()
        console.print(f"[dim]{len(trace)} images in {seconds:.0f} s[/]")
        answers = replay(trace, port)
        while time.perf_counter() - began < seconds:
            time.sleep(0.1)
    seen = [moment.since(began) for moment in moments if moment.at >= began]
    _print(seen, answers)
    plot_timeline(seen, answers, GPUS, output)
    console.print(f"written: {output}")


def load(seconds: float, seed: int) -> list[Arrival]:
    """Little, then much for base, then much for the refiner, then little."""

    ends = [end * seconds for end in accumulate(share for share, _, _ in _PARTS)]

    def rate(at: float) -> float:
        return _PARTS[bisect(ends, at)][1] if at < seconds else 0.0

    def mix(at: float) -> RequestMix:
        handoff = _PARTS[min(bisect(ends, at), len(_PARTS) - 1)][2]
        return RequestMix((30,), ((1024, 1024),), (6.9,), (handoff,), heavy=0.0)

    return draw_trace(Workload(rate, mix), rate=1.0, seconds=seconds, rng=Random(seed))


@contextmanager
def running() -> Iterator[int]:
    """The application runs on a Ray of its own; gives its port."""
    with local_ray(GPUS) as (port, folder):
        with console.status("starting the service"):
            deploy(_APP, "/", str(folder))
            while serve.status().applications[_APP].status != "RUNNING":
                time.sleep(0.1)
        yield port


def deploy(name: str, route: str, folder: str) -> None:
    """Serve was told to run the application under this path, scaled by the service's policy."""
    application = {
        "name": name,
        "route_prefix": route,
        "import_path": f"{__name__}:build",
        "args": {"ledger": f"{folder}/ledger.sqlite"},
        "autoscaling_policy": {"policy_function": POLICY, "policy_kwargs": _AIMS},
    }
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def observe(name: str) -> TimelinePoint:
    """How many replicas there are now, and what the ingress owes."""
    deployments = serve.status().applications[name].deployments
    states = {stage: deployments[_NAMES[stage]].replica_states for stage in Stage}
    ingress: Any = serve.get_deployment_handle("Ingress", name)
    told = ingress.record_autoscaling_stats.remote().result(timeout_s=10)
    there = {stage: states[stage].get(ReplicaState.RUNNING, 0) for stage in Stage}
    return TimelinePoint(
        at=time.perf_counter(),
        replicas=there,
        changing={stage: sum(states[stage].values()) - there[stage] for stage in Stage},
        owed={stage: told[f"{stage}_owed"] for stage in Stage},
    )


@contextmanager
def _watching() -> Iterator[list[TimelinePoint]]:
    """A list that grows by a moment every second. Raises at the end what looking raised."""
    moments, done = list[TimelinePoint](), threading.Event()

    def write_down() -> None:
        while not done.wait(1.0):
            moments.append(observe(_APP))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(write_down)
        try:
            yield moments
        finally:
            done.set()
        watching.result()


def _print(moments: Sequence[TimelinePoint], answers: Sequence[Response]) -> None:
    table = Table(
        title=f"Replicas on {GPUS} GPUs that are not there, by the work that is owed",
        caption="changing: replicas that start or finish. Owed: GPU-seconds of images under way",
    )
    for head in ("s", "base", "refiner", "changing", "base owes", "refiner owes", "under way"):
        table.add_column(head, justify="right")
    due = 0.0
    for one in moments:
        if one.at < due:
            continue
        due = one.at - one.at % _ROWS + _ROWS
        table.add_row(
            f"{one.at:.0f}",
            *(str(one.replicas[stage]) for stage in Stage),
            str(sum(one.changing.values())),
            *(f"{one.owed[stage]:.1f}" for stage in Stage),
            str(sum(answer.under_way(one.at) for answer in answers)),
        )
    console.print(table)
    seconds = sorted(one.seconds for one in answers)
    first, last = moments[0], moments[-1]
    for stage in Stage:
        most = max(one.replicas[stage] for one in moments)
        console.print(f"{stage}: {first.replicas[stage]} -> {most} -> {last.replicas[stage]}")
    console.print(
        f"{len(answers)} images, [bold]{sum(one.status != 201 for one in answers)} failed[/]; "
        f"seconds: median {percentile(seconds, 0.5):.1f}, 95th percentile "
        f"{percentile(seconds, 0.95):.1f}. Most replicas at work at once: "
        f"{max(sum(one.replicas.values()) for one in moments)} on {GPUS} GPUs"
    )
