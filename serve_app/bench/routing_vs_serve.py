"""Routing by owed work against Ray Serve's own router, and the simulator against both.

Both get the same load, through Ray and HTTP. Four replicas on pretended GPUs sleep for as long as a
step would take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from ray import serve
from rich.console import Console
from rich.table import Table

from serve_app.bench.load_generator import replay
from serve_app.bench.local_ray import local_ray
from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize, WorkKind
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import ROUTER, bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import POWER_OF_TWO_CHOICES
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.policies import route_by_owed_work, route_by_requests
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival, RequestMix, Workload, draw_trace
from serve_app.testing.sleeping_networks import SCALE
from serve_app.testing.sleeping_stage import SleepingStage, ingress_config, stage_config

_APP, _STAGE = "bench", "BaseGenerator"
_GPUS, _SIZE = 4, BatchSize(4, (8,))
_LOAD = 0.85  # of what full batches could do
_MIX = RequestMix(
    steps=(4, 20, 50, 150),
    sizes=((1024, 1024), (768, 768)),
    guidance=(6.9,),
    handoffs=(1.0,),
    heavy=0.0,
)
_SPEED = GpuSpeed(tflops=1000.0, vae_tflops=1000.0)  # decides how long the replicas sleep
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The latencies of a trace in seconds, per image and per requested step."""

    latencies: tuple[float, ...]
    per_step: tuple[float, ...]
    failed: int = 0

    @classmethod
    def of(cls, timed: Sequence[tuple[Arrival, float]], failed: int = 0) -> "RunResult":
        """Return the result of a trace from its arrivals and their seconds, sorted."""
        latencies = tuple(sorted(seconds for _, seconds in timed))
        return cls(latencies, tuple(sorted(s / arrival.steps for arrival, s in timed)), failed)

    @property
    def cells(self) -> tuple[float, ...]:
        """Median and 95th percentile, per image and then per step."""
        series = (self.latencies, self.per_step)
        return tuple(percentile(values, share) for values in series for share in (0.5, 0.95))


def compare(*, rounds: int, seconds: float, seed: int) -> None:
    """Print the latency with both routers, measured and simulated."""
    routers = {"owed work": ROUTER, "two choices": POWER_OF_TWO_CHOICES}
    simulated: dict[str, list[RunResult]] = {name: [] for name in routers}
    measured: dict[str, list[RunResult]] = {name: [] for name in routers}
    with local_ray(_GPUS) as (port, folder):
        for number in range(rounds):
            trace = draw_load(seconds, seed + number)
            for name, router in routers.items():
                with console.status(f"round {number + 1} of {rounds}: {name}"):
                    result, step_seconds = _run(trace, router, port, folder / "ledger.sqlite")
                measured[name].append(result)
                simulated[name].append(_simulate(trace, name, step_seconds, seed + number))
                console.print(f"[dim]round {number + 1}, {name}: {len(trace)} images[/]")
    _print(measured, simulated, rounds, seconds)


def draw_load(seconds: float, seed: int) -> list[Arrival]:
    """Return random arrivals, with as much work as four replicas do in 85 % of the time."""
    workload, rate, trace = Workload(lambda at: 1.0, lambda at: _MIX), 1.0, list[Arrival]()
    for _ in range(4):  # the load of a drawn trace differs from its expected one
        trace = draw_trace(workload, rate=rate, seconds=seconds, rng=Random(seed))
        rate *= _LOAD * _GPUS * seconds / sum(gpu_seconds(arrival) for arrival in trace)
    return trace


def gpu_seconds(arrival: Arrival) -> float:
    """Return the seconds that an image takes of a replica, in full batches."""
    spec, schedule, segments = image_of(arrival, refiner=False)
    sample: Sample[float] = new_sample("", spec, schedule, segments[0].stage)
    return _SPEED.amortized_seconds(sample, segments[0], _SIZE)


def _run(
    trace: Sequence[Arrival], router: str, port: int, ledger: Path
) -> tuple[RunResult, Mapping[tuple[Stage, int, int, int], float]]:
    """Return the result of a trace, and the seconds that the replicas measured for their steps."""
    scale = DeploymentScale(min_replicas=_GPUS, num_gpus=1, num_cpus=0.1)
    stage = deploy_stage(
        SleepingStage,
        _STAGE,
        scale,
        images=_SIZE.images,
        gpus=1,
        drain=1.0,
        router=router,
    ).bind(stage_config(Stage.BASE, images=_SIZE.images), _SPEED, RayMeter)
    graph = bind_graph(
        ingress_config(refiner=False), LedgerFile(ledger), stage, None, DeploymentScale(), 1.0
    )
    serve.run(graph, name=_APP)
    replay(_warm_up(), port)
    responses = replay(trace, port)
    stats = serve.get_deployment_handle(_STAGE, _APP).broadcast("stats").results(timeout_s=10)
    serve.delete(_APP)
    timed = [(response.arrival, response.seconds) for response in responses]
    failed = sum(response.status != 201 for response in responses)
    return RunResult.of(timed, failed), median_step_seconds(stats)


def _warm_up() -> list[Arrival]:
    """Return enough arrivals for every replica to run each size."""
    return [Arrival(0.0, 4, *size, handoff=1.0) for size in _MIX.sizes for _ in range(8 * _GPUS)]


def median_step_seconds(stats: Sequence[ReplicaStats]) -> dict[tuple[Stage, int, int, int], float]:
    """Return the median over the replicas of the seconds of a step, by stage, size and rows."""
    by_kind: dict[tuple[Stage, int, int, int], list[float]] = {}
    for replica in stats:
        for turn, seconds in replica.engine.costs.seconds_by_turn.items():
            if turn.work is WorkKind.STEP:
                size = turn.width * SCALE, turn.height * SCALE
                by_kind.setdefault((turn.stage, *size, turn.rows), []).append(seconds)
    return {kind: median(seconds) for kind, seconds in by_kind.items()}


def _simulate(
    trace: Sequence[Arrival],
    name: str,
    step_seconds: Mapping[tuple[Stage, int, int, int], float],
    seed: int,
) -> RunResult:
    """Simulate the trace under the same policy, with steps as long as measured."""
    route = route_by_owed_work() if name == "owed work" else route_by_requests(Random(seed))
    speed = replace(_SPEED, step_seconds=step_seconds)
    run = Cluster(_SIZE, speed, route, None, {Stage.BASE: _GPUS}).run(trace)
    return RunResult.of([(image.arrival, image.seconds) for image in run.finished])


def _print(
    measured: Mapping[str, Sequence[RunResult]],
    simulated: Mapping[str, Sequence[RunResult]],
    rounds: int,
    seconds: float,
) -> None:
    table = Table(
        title=f"{rounds} traces of {seconds:.0f} s at {_LOAD:.0%} of {_GPUS} GPUs, through HTTP",
        caption="seconds: median of the traces \\[min, max]. A step: seconds per requested step",
    )
    table.add_column("routed by")
    for heading in ("p50", "p95", "p50 a step", "p95 a step", "failed"):
        table.add_column(heading, justify="right")
    for name in measured:
        failed = str(sum(result.failed for result in measured[name]))
        table.add_row(name, *_cells([result.cells for result in measured[name]]), failed)
        table.add_row(
            "  simulated", *_cells([result.cells for result in simulated[name]]), "", style="dim"
        )
        errors = [
            [s / d - 1 for s, d in zip(a.cells, b.cells, strict=True)]
            for a, b in zip(simulated[name], measured[name], strict=True)
        ]
        table.add_row("  off by", *_cells(errors, "{:+.0%}"), "", style="dim")
    console.print(table)
    ours, theirs = (measured[name] for name in measured)
    ratios = [a.cells[3] / b.cells[3] for a, b in zip(ours, theirs, strict=True)]
    console.print(
        f"p95 of latency per step, owed work against two choices: [bold]{median(ratios):.2f}[/] "
        f"\\[{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def _cells(rows: Sequence[Sequence[float]], form: str = "{:.3f}") -> list[str]:
    """For each column the median and the extremes."""
    return [
        f"{form.format(median(column))} [dim]\\[{form.format(min(column))}, "
        f"{form.format(max(column))}][/]"
        for column in zip(*rows, strict=True)
    ]
