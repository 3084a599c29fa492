"""`simulate`: a trace through a cluster under each policy, printed and plotted.

Knows no Ray and no torch. The capacity that `load` is a share of is that of full batches: what a
cluster that wasted nothing could do. A steady trace compares routing, on all GPUs; any other one
compares scaling, on several traces of its kind.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from rich.console import Console
from rich.table import Table

from serve_app.core.diffusion.sample import StageSegment, new_sample, with_latents
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.core.scheduling.step_scheduler import StepScheduler, WorkKind
from serve_app.simulator.cluster import Cluster, SimulationResult, journey_of
from serve_app.simulator.comparison import (
    ALL,
    CHOSEN,
    DEFAULT,
    LOADING,
    PROMPT,
    SIZE,
    TUNED,
    Comparison,
    compare,
    shared_by_work,
    work_of,
)
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.plot import plot_routing, plot_scaling
from serve_app.simulator.policies import route_by_owed_work, route_by_requests
from serve_app.simulator.replica import SimSample
from serve_app.simulator.summary import GRACE, SLO, Summary, summarize
from serve_app.simulator.traces import WORKLOADS, Arrival, draw_trace, read_trace

TRACES = 5  # with waves: by as many seeds, from the one asked for
_STEADY = "steady"
_IN_FLIGHT = 1000  # samples, where planning is measured
_PLANS = 500

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What is to be simulated; what is None is chosen by the trace."""

    gpus: int | None
    trace: str  # a wave's name, or a CSV file
    load: float | None
    seconds: float | None
    seed: int
    output: Path


@dataclass(frozen=True, slots=True)
class _Defaults:
    """A wish in full."""

    gpus: int
    load: float
    seconds: float


def simulate(wish: SimulateOptions) -> int:
    """The outcome is printed and the PNG written; the exit status."""
    steady = wish.trace == _STEADY
    usual = _Defaults(256, 0.85, 90.0) if steady else _Defaults(16, 0.25, 960.0)
    plan = _Defaults(
        wish.gpus or usual.gpus, wish.load or usual.load, wish.seconds or usual.seconds
    )
    try:
        traces = _traces(wish, plan)
    except OperatorError as error:
        console.print(f"[bold red]error[/] {error}", soft_wrap=True)
        return 2
    plan = replace(plan, seconds=max(plan.seconds, max(one.at for one in traces[0])))
    asked = median(_load(trace, plan) for trace in traces)
    several = "" if len(traces) == 1 else f" of {len(traces)} traces, by medians"
    console.print(
        f"{median(len(trace) for trace in traces):,.0f} images in {plan.seconds:.0f} s on "
        f"{plan.gpus} GPUs, {asked:.0%} of what full batches could do{several}; in time is within "
        f"{SLO:g} times alone and {GRACE:g} s",
        soft_wrap=True,
    )
    began = time.perf_counter()
    if steady:
        _compare_routing(traces[0], plan, wish)
    else:
        compared = compare(traces, plan.gpus, plan.seconds)
        console.print(_scaling_table(compared))
        for line in _savings(compared):
            console.print(line, soft_wrap=True)
        plot_scaling(compared, traces[0], wish.output)
    console.print(f"[dim]simulated in {time.perf_counter() - began:.0f} s[/]")
    console.print(
        f"planning one step with {_IN_FLIGHT:,} samples in flight: {planning() * 1e6:.0f} µs"
    )
    console.print(f"[bold]{wish.output}[/]", soft_wrap=True)
    return 0


def planning() -> float:
    """The median seconds that `StepScheduler.plan` takes with a thousand samples that step."""
    scheduler: StepScheduler[float] = StepScheduler({"": SIZE})
    draw = Random(0)
    for number in range(_IN_FLIGHT):
        arrival = Arrival(0.0, draw.choice((4, 20, 50, 150)), draw.choice((1024, 832)), 1024)
        spec, schedule, _ = journey_of(arrival, refiner=False)
        one: SimSample = with_latents(new_sample(str(number), spec, schedule, Stage.BASE), 0.0, 1)
        scheduler.add(one, StageSegment(Stage.BASE, len(schedule), last=True))
    seconds: list[float] = []
    while len(seconds) < _PLANS:
        began = time.perf_counter()
        plan = scheduler.plan()
        took = time.perf_counter() - began
        assert plan is not None
        results = [replace(s, index=s.index + (plan.work is WorkKind.STEP)) for s in plan.samples]
        scheduler.settle(plan, results)
        if plan.work is WorkKind.STEP:
            seconds.append(took)
    return sorted(seconds)[_PLANS // 2]


def _traces(wish: SimulateOptions, plan: _Defaults) -> list[list[Arrival]]:
    """One of a steady wave, or of a file; several of other waves."""
    wave = WORKLOADS.get(wish.trace)
    if wave is None:
        return [read_trace(Path(wish.trace))]
    traces = []
    for seed in range(wish.seed, wish.seed + (1 if wish.trace == _STEADY else TRACES)):
        rate, trace = float(plan.gpus), list[Arrival]()
        for _ in range(3):  # what is drawn comes to another load than was meant
            trace = draw_trace(wave, rate=rate, seconds=plan.seconds, draw=Random(seed))
            rate *= plan.load / _load(trace, plan)
        traces.append(trace)
    return traces


def _load(trace: Sequence[Arrival], plan: _Defaults) -> float:
    """What is asked for, of what full batches could do."""
    return sum(work_of(trace, GpuSpeed()).values()) / plan.seconds / plan.gpus


def _compare_routing(trace: Sequence[Arrival], plan: _Defaults, wish: SimulateOptions) -> None:
    """All GPUs are there, shared out by the work of each stage."""
    start = shared_by_work(work_of(trace, GpuSpeed()), plan.gpus)
    routers = {
        "owed work": route_by_owed_work(),
        "two choices": route_by_requests(Random(wish.seed)),
    }
    runs: dict[str, SimulationResult] = {}
    for name, route in routers.items():
        with console.status(f"simulating {name}"):
            runs[name] = Cluster(SIZE, GpuSpeed(), route, None, start, loading=LOADING).run(trace)
    outcomes = {name: summarize(run, plan.seconds) for name, run in runs.items()}
    console.print(_routing_table(outcomes))
    console.print(
        "[dim]a step: the 95th percentile of seconds per step asked for; full: the places of "
        "batches that images took[/]"
    )
    plot_routing(runs, trace, wish.output)


def _table(first: str, *heads: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _routing_table(outcomes: Mapping[str, Summary]) -> Table:
    table = _table(
        "routed by", "in time", "goodput", "p50", "p95", "p99", "a step", "GPU h", "full"
    )
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


def _scaling_table(compared: Comparison) -> Table:
    """Medians, and from the least to the most of all traces."""
    table = _table("replicas by", "", "in time", "from-to", "GPU h", "from-to", "p95")
    for setting, outcomes in compared.outcomes.items():
        attained = sorted(one.attained for one in outcomes)
        hours = sorted(one.gpu_hours for one in outcomes)
        table.add_row(
            setting.family,
            setting.name,
            f"{median(attained):.1%}",
            f"{100 * attained[0]:.1f}-{100 * attained[-1]:.1f}",
            f"{median(hours):.2f}",
            f"{hours[0]:.2f}-{hours[-1]:.2f}",
            f"{median(one.p95 for one in outcomes):.0f} s",
            style="bold" if setting is CHOSEN else "",
        )
    return table


def _savings(compared: Comparison) -> list[str]:
    lines = [f"with as many images in time, {CHOSEN.family}, {CHOSEN.name}, takes"]
    for family in (TUNED, PROMPT, DEFAULT, ALL):
        each = [compared.saved(family, trace) for trace in range(len(compared.outcomes[CHOSEN]))]
        lines.append(
            f"  [bold]{compared.saved(family):.0%}[/] fewer GPU-hours than {family}, by medians; "
            f"{median(each):.0%} ({min(each):.0%} to {max(each):.0%}) trace by trace, than what "
            "was best for each"
        )
    return lines
