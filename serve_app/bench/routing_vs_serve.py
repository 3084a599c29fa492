"""Owed-work routing against Ray Serve's own, on the same load, through Ray and HTTP; and the
simulator against both.

Knows no model: four replicas with make-believe GPUs sleep for as long as a step would take.
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
from serve_app.deployments.graph import ROUTER, bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import POWER_OF_TWO_CHOICES
from serve_app.simulator.cluster import Cluster, image_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work, route_by_requests
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival, RequestMix, Workload, draw_trace
from serve_app.testing.sleeping_stage import SCALE, SleepingStage, ingress_config, stage_config

_APP, _STAGE = "bench", "BaseGenerator"
_GPUS, _SIZE = 4, BatchSize(4, 8)
_LOAD = 0.85  # of what full batches could do
_MIX = RequestMix(
    steps=(4, 20, 50, 150),
    sizes=((1024, 1024), (768, 768)),
    guidance=(6.9,),
    handoffs=(1.0,),
    heavy=0.0,
)
_COSTS = GpuSpeed(tflops=1000.0, vae_tflops=1000.0)  # stated: what the replicas sleep
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class RunResult:
    """A trace's outcome in seconds, per image and per step asked for."""

    latencies: tuple[float, ...]
    per_step: tuple[float, ...]
    failed: int = 0

    @classmethod
    def of(cls, timed: Sequence[tuple[Arrival, float]], failed: int = 0) -> "RunResult":
        """In order of length."""
        latencies = tuple(sorted(seconds for _, seconds in timed))
        return cls(latencies, tuple(sorted(s / one.steps for one, s in timed)), failed)

    @property
    def cells(self) -> tuple[float, ...]:
        """Median and 95th percentile of both."""
        of = [self.latencies, self.per_step]
        return tuple(percentile(one, share) for one in of for share in (0.5, 0.95))


def compare(*, rounds: int, seconds: float, seed: int) -> None:
    """Prints latency under both routers, and what the simulator says of each."""
    routers = {"owed work": ROUTER, "two choices": POWER_OF_TWO_CHOICES}
    said: dict[str, list[RunResult]] = {name: [] for name in routers}
    did: dict[str, list[RunResult]] = {name: [] for name in routers}
    with local_ray(_GPUS) as (port, folder):
        for number in range(rounds):
            trace = _trace(seconds, seed + number)
            for name, router in routers.items():
                with console.status(f"round {number + 1} of {rounds}: {name}"):
                    played, costs = _play(trace, router, port, folder / "ledger.sqlite")
                did[name].append(played)
                said[name].append(_simulated(trace, name, costs, seed + number))
                console.print(f"[dim]round {number + 1}, {name}: {len(trace)} images[/]")
    _print(did, said, rounds, seconds)


def _trace(seconds: float, seed: int) -> list[Arrival]:
    """Images that come at random, together as much work as four replicas do in 85 % of the time."""
    wave, rate, trace = Workload(lambda at: 1.0, lambda at: _MIX), 1.0, list[Arrival]()
    for _ in range(4):  # what is drawn comes to another load than was meant
        trace = draw_trace(wave, rate=rate, seconds=seconds, rng=Random(seed))
        rate *= _LOAD * _GPUS * seconds / sum(_alone(one) for one in trace)
    return trace


def _alone(arrival: Arrival) -> float:
    """Seconds of a replica's time, in full batches."""
    spec, schedule, legs = image_of(arrival, refiner=False)
    sample: Sample[float] = new_sample("", spec, schedule, legs[0].stage)
    return _COSTS.amortized_seconds(sample, legs[0], _SIZE)


def _play(
    trace: Sequence[Arrival], router: str, port: int, ledger: Path
) -> tuple[RunResult, Mapping[tuple[Stage, int, int, int], float]]:
    """What became of the trace, and the seconds that steps took by the replicas' own account."""
    scale = DeploymentScale(min_replicas=_GPUS, num_gpus=1, num_cpus=0.1)
    stage = deploy_stage(
        SleepingStage,
        _STAGE,
        scale,
        images=_SIZE.images,
        gpus=1,
        drain=1.0,
        router=router,
    ).bind(stage_config(Stage.BASE, images=_SIZE.images), _COSTS, RayMeter)
    graph = bind_graph(ingress_config(refiner=False), ledger, stage, None, DeploymentScale(), 1.0)
    serve.run(graph, name=_APP)
    replay([replace(one, steps=4) for one in _warming()], port)
    answers = replay(trace, port)
    facts = serve.get_deployment_handle(_STAGE, _APP).broadcast("stats").results(timeout_s=10)
    serve.delete(_APP)
    timed = [(one.arrival, one.seconds) for one in answers]
    return RunResult.of(timed, sum(one.status != 201 for one in answers)), _measured(facts)


def _warming() -> list[Arrival]:
    """So many that every replica has had each size."""
    return [Arrival(0.0, 4, *size, handoff=1.0) for size in _MIX.sizes for _ in range(8 * _GPUS)]


def _measured(facts: Sequence[ReplicaStats]) -> dict[tuple[Stage, int, int, int], float]:
    """The median over the replicas of what a step took, by kind."""
    seen: dict[tuple[Stage, int, int, int], list[float]] = {}
    for one in facts:
        for turn, seconds in one.costs.seconds_by_turn.items():
            if turn.work is WorkKind.STEP:
                size = turn.width * SCALE, turn.height * SCALE
                seen.setdefault((turn.stage, *size, turn.rows), []).append(seconds)
    return {kind: median(seconds) for kind, seconds in seen.items()}


def _simulated(
    trace: Sequence[Arrival],
    name: str,
    steps: Mapping[tuple[Stage, int, int, int], float],
    seed: int,
) -> RunResult:
    """The same trace under the same policy on a virtual clock, with steps as long as measured."""
    route = route_by_owed_work() if name == "owed work" else route_by_requests(Random(seed))
    costs = replace(_COSTS, step_seconds=steps)
    run = Cluster(_SIZE, costs, route, None, {Stage.BASE: _GPUS}).run(trace)
    return RunResult.of([(one.arrival, one.seconds) for one in run.finished])


def _print(
    did: Mapping[str, Sequence[RunResult]],
    said: Mapping[str, Sequence[RunResult]],
    rounds: int,
    seconds: float,
) -> None:
    table = Table(
        title=f"{rounds} traces of {seconds:.0f} s at {_LOAD:.0%} of {_GPUS} GPUs, through HTTP",
        caption="seconds: median of the traces \\[least, most]. A step: seconds per step asked for",
    )
    table.add_column("routed by")
    for head in ("p50", "p95", "p50 a step", "p95 a step", "failed"):
        table.add_column(head, justify="right")
    for name in did:
        failed = str(sum(one.failed for one in did[name]))
        table.add_row(name, *_cells([one.cells for one in did[name]]), failed)
        table.add_row("  simulated", *_cells([one.cells for one in said[name]]), "", style="dim")
        off = [
            [s / d - 1 for s, d in zip(a.cells, b.cells, strict=True)]
            for a, b in zip(said[name], did[name], strict=True)
        ]
        table.add_row("  off by", *_cells(off, "{:+.0%}"), "", style="dim")
    console.print(table)
    ours, theirs = (did[name] for name in did)
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
