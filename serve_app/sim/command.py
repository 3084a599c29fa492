"""`simulate`: a trace through a cluster under each policy, printed and plotted.

Knows no Ray and no torch. The capacity that `load` is a share of is that of full batches: what a
cluster that wasted nothing could do.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from serve_app.core.errors import OperatorError
from serve_app.core.sample import Leg, begin, entered
from serve_app.core.scaling import Aims, share_out
from serve_app.core.scheduler import BatchSize, StepScheduler, Work
from serve_app.core.spec import Stage
from serve_app.sim.cluster import Cluster, Router, Scaler, journey_of
from serve_app.sim.costs import Costs
from serve_app.sim.outcome import GRACE, SLO, Outcome, outcome_of
from serve_app.sim.plot import plot
from serve_app.sim.policies import (
    route_by_owed_work,
    route_by_requests,
    scale_by_owed_work,
    scale_by_requests,
)
from serve_app.sim.replica import Simple
from serve_app.sim.trace import WAVES, Arrival, drawn_trace, read_trace

SIZE = BatchSize(4, 8)
AIMS = Aims(wait=5.0, busy=0.7)
_LOADING = 20.0  # seconds until a new replica is ready
_IN_FLIGHT = 1000  # samples, where planning is measured
_PLANS = 500

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be simulated."""

    gpus: int
    trace: str  # a wave's name, or a CSV file
    load: float
    seconds: float
    seed: int
    output: Path


def simulate(wish: Wish) -> int:
    """The outcome is printed and the PNG written; the exit status."""
    costs = Costs()
    try:
        trace = _trace(wish, costs)
    except OperatorError as error:
        console.print(f"[bold red]error[/] {error}", soft_wrap=True)
        return 2
    seconds = max(wish.seconds, max(one.at for one in trace))
    work = _work(trace, costs)
    asked = sum(work.values()) / seconds / wish.gpus
    console.print(
        f"{len(trace):,} images in {seconds:.0f} s on {wish.gpus} GPUs, {asked:.0%} of what full "
        f"batches could do; in time is within {SLO:g} times alone and {GRACE:g} s"
    )
    runs, outcomes = {}, {}
    for name, cluster in _clusters(wish, costs, work).items():
        began = time.perf_counter()
        with console.status(f"simulating {name}"):
            runs[name] = cluster.run(trace)
        outcomes[name] = outcome_of(runs[name], seconds)
        console.print(f"[dim]{name}: simulated in {time.perf_counter() - began:.1f} s[/]")
    console.print(_table(outcomes))
    console.print(
        "[dim]a step: the 95th percentile of seconds per step asked for; full: the places of "
        "batches that images took[/]"
    )
    console.print(
        f"planning one step with {_IN_FLIGHT:,} samples in flight: {planning() * 1e6:.0f} µs"
    )
    plot(runs, trace, wish.output)
    console.print(f"[bold]{wish.output}[/]", soft_wrap=True)
    return 0


def planning() -> float:
    """The median seconds that `StepScheduler.plan` takes with a thousand samples that step."""
    scheduler: StepScheduler[float] = StepScheduler({"": SIZE})
    draw = Random(0)
    for number in range(_IN_FLIGHT):
        arrival = Arrival(0.0, draw.choice((4, 20, 50, 150)), draw.choice((1024, 832)), 1024)
        spec, schedule, _ = journey_of(arrival, refiner=False)
        one: Simple = entered(begin(str(number), spec, schedule, Stage.BASE), 0.0, 1)
        scheduler.add(one, Leg(Stage.BASE, len(schedule), last=True))
    seconds: list[float] = []
    while len(seconds) < _PLANS:
        began = time.perf_counter()
        plan = scheduler.plan()
        took = time.perf_counter() - began
        assert plan is not None
        results = [replace(s, index=s.index + (plan.work is Work.STEP)) for s in plan.samples]
        scheduler.settle(plan, results)
        if plan.work is Work.STEP:
            seconds.append(took)
    return sorted(seconds)[_PLANS // 2]


def _trace(wish: Wish, costs: Costs) -> list[Arrival]:
    wave = WAVES.get(wish.trace)
    if wave is None:
        return read_trace(Path(wish.trace))
    rate, trace = float(wish.gpus), list[Arrival]()
    for _ in range(3):  # what is drawn comes to another load than was meant: meant is what comes
        trace = drawn_trace(wave, rate=rate, seconds=wish.seconds, draw=Random(wish.seed))
        rate *= wish.load * wish.gpus * wish.seconds / sum(_work(trace, costs).values())
    return trace


def _work(trace: Sequence[Arrival], costs: Costs) -> dict[Stage, float]:
    """GPU-seconds of a trace by stage, where all batches are full."""
    work = dict.fromkeys(Stage, 0.0)
    for arrival in trace:
        spec, schedule, legs = journey_of(arrival, refiner=True)
        sample: Simple = begin("", spec, schedule, legs[0].stage)
        for leg, share in zip(legs, costs.shares(sample, legs, SIZE), strict=True):
            work[leg.stage] += share
    return work


def _clusters(wish: Wish, costs: Costs, work: Mapping[Stage, float]) -> dict[str, Cluster]:
    """One for each policy. Where the trace has waves replicas are scaled, else they are fixed."""

    def cluster(route: Router, scale: Scaler | None, start: Mapping[Stage, int]) -> Cluster:
        return Cluster(SIZE, costs, route, scale, start, floor, wish.gpus, loading=_LOADING)

    floor = {stage: max(1, wish.gpus // 16) for stage in Stage}
    least = dict.fromkeys(Stage, 1)
    whole = {stage: max(1, round(1000 * part)) for stage, part in work.items()}
    fixed = share_out(whole, least, wish.gpus)
    if wish.trace == "steady":
        return {
            "owed work": cluster(route_by_owed_work(), None, fixed),
            "two choices": cluster(route_by_requests(Random(wish.seed)), None, fixed),
        }
    few = share_out(whole, least, max(2, wish.gpus // 3))
    scalers = {"by owed work": scale_by_owed_work(wish.gpus, AIMS)} | {
        f"by requests, {each} each": scale_by_requests(wish.gpus, AIMS, each) for each in (4, 3, 2)
    }
    clusters = {name: cluster(route_by_owed_work(), scale, few) for name, scale in scalers.items()}
    return clusters | {"all the time": cluster(route_by_owed_work(), None, fixed)}


def _table(outcomes: Mapping[str, Outcome]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("replicas" if len(outcomes) > 2 else "routed by", no_wrap=True)
    for head in ("in time", "goodput", "p50", "p95", "p99", "a step", "GPU h", "full"):
        table.add_column(head, justify="right")
    for name, one in outcomes.items():
        table.add_row(
            name,
            f"{one.attained:.1%}",
            f"{one.goodput:.1f}/s",
            f"{one.p50:.1f} s",
            f"{one.p95:.1f} s",
            f"{one.p99:.1f} s",
            f"{one.per_step:.2f} s",
            f"{one.gpu_hours:.2f}",
            f"{one.occupancy:.0%}",
        )
    return table
