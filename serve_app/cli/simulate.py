"""`aura simulate`: run traces through a simulated cluster under each policy; print and plot.

A trace with several callers compares how they fare, and a steady one compares routing; both on all
GPUs. Overload shows what admission makes of more requests than the GPUs can do. Any other trace
compares scaling.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from serve_app.cli.console import REFUSED, print_error
from serve_app.core.errors import OperatorError
from serve_app.simulator.comparison import (
    ALL,
    CHOSEN,
    DEFAULT,
    PROMPT,
    TUNED,
    Comparison,
    compare_routing,
    compare_scaling,
)
from serve_app.simulator.fairness import compare_fairness, has_callers
from serve_app.simulator.overload import CASES, LARGE_CASE, OVERLOAD, Returners, run_case
from serve_app.simulator.planning_time import (
    CALLERS,
    IN_FLIGHT,
    REPLICAS,
    measure_admitting,
    measure_dispatching,
    measure_planning,
)
from serve_app.simulator.plot import plot_routing, plot_scaling
from serve_app.simulator.plotting import PlotsUnavailable
from serve_app.simulator.scenario import STEADY, Scenario, make_scenario
from serve_app.simulator.summary import GRACE, SLO, Summary, summarize

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of the command; what is None depends on the kind of trace."""

    gpus: int | None
    trace: str  # a workload's name, or a CSV file
    load: float | None
    seconds: float | None
    seed: int
    output: Path


def simulate(options: SimulateOptions) -> int:
    """Print the results, write the plot, and return the exit status."""
    if options.trace == OVERLOAD:
        return _overload(options)
    try:
        scenario = make_scenario(
            options.trace,
            gpus=options.gpus,
            load=options.load,
            seconds=options.seconds,
            seed=options.seed,
        )
    except OperatorError as error:
        print_error(error)
        return REFUSED
    traces = len(scenario.traces)
    console.print(
        f"{scenario.images:,.0f} images in {scenario.seconds:.0f} s on {scenario.gpus} GPUs, "
        f"{scenario.load:.0%} of what full batches could do"
        f"{'' if traces == 1 else f' (medians of {traces} traces)'}; an image is in time within "
        f"{SLO:g} times its unloaded latency plus {GRACE:g} s",
        soft_wrap=True,
    )
    began = time.perf_counter()
    plotted: Path | PlotsUnavailable | None = None
    if has_callers(scenario.traces[0]):
        _compare_fairness(scenario)
    elif options.trace == STEADY:
        plotted = _compare_routing(scenario, options)
    else:
        plotted = _compare_scaling(scenario, options)
    console.print(f"[dim]simulated in {time.perf_counter() - began:.0f} s[/]")
    _print_planning_time()
    if isinstance(plotted, PlotsUnavailable):
        console.print(str(plotted), markup=False, soft_wrap=True)
    elif plotted is not None:
        console.print(f"[bold]{plotted}[/]", soft_wrap=True)
    return 0


def _compare_fairness(scenario: Scenario) -> None:
    """Print the comparison."""
    with console.status("simulating each service"):
        summaries = compare_fairness(scenario.traces[0], scenario.gpus)
    table = _table("service", "caller", "images", "p50", "p95", "last after", "work")
    for row in summaries:
        times = (f"{seconds:.1f} s" for seconds in (row.p50, row.p95, row.finished_at))
        throughput = "-" if row.throughput is None else f"{row.throughput:.1%}"
        table.add_row(row.service, row.caller, str(row.images), *times, throughput)
    console.print(table)
    console.print(
        "[dim]work: what was done while images waited, as a share of what the last service did[/]",
        soft_wrap=True,
    )


def _overload(options: SimulateOptions) -> int:
    """Print what becomes of the images of each overload, and return the exit status."""
    cases = [
        case if options.gpus is None or case is not LARGE_CASE else replace(case, gpus=options.gpus)
        for case in CASES
    ]
    console.print(
        "goodput: work that was done in time, as a share of what full batches of the busiest stage "
        "could do; late: given up, some of them begun; during and after the load: how many of the "
        "refused were accepted, who came back once, each after its own Retry-After",
        soft_wrap=True,
    )
    table = _table("load", "images", "goodput", "refused", "late", "begun", "during", "after")
    began = time.perf_counter()
    with console.status("simulating"):
        for case in cases:
            result = run_case(case, options.seed)
            table.add_row(
                case.title,
                f"{result.images:,}",
                f"{result.goodput:.1%}",
                f"{result.refused:.1%}",
                str(result.late),
                str(result.wasted),
                _returned(result.returned_meanwhile),
                _returned(result.returned_later),
            )
    console.print(table)
    console.print(f"[dim]simulated in {time.perf_counter() - began:.0f} s[/]")
    _print_planning_time()
    return 0


def _returned(returners: Returners) -> str:
    if not returners.count:
        return "-"
    return f"{returners.accepted}/{returners.count}"


def _print_planning_time() -> None:
    console.print(
        f"planning one step with {IN_FLIGHT:,} samples in flight, of {CALLERS} callers: "
        f"{measure_planning()}; sending one image to one of {REPLICAS} replicas: "
        f"{measure_dispatching()}; admitting one job: {measure_admitting()}",
        soft_wrap=True,
    )


def _compare_routing(scenario: Scenario, options: SimulateOptions) -> Path | PlotsUnavailable:
    """Print the comparison; return the plot's file, or why there is none."""
    (trace,) = scenario.traces
    with console.status("simulating both routers"):
        runs = compare_routing(trace, scenario.gpus, options.seed)
    console.print(
        _routing_table({name: summarize(run, scenario.seconds) for name, run in runs.items()})
    )
    console.print(
        "[dim]per step: 95th percentile of latency divided by the requested steps; full: the share "
        "of batch places that were used[/]"
    )
    try:
        plot_routing(runs, trace, options.output)
    except PlotsUnavailable as error:
        return error
    return options.output


def _compare_scaling(scenario: Scenario, options: SimulateOptions) -> Path | PlotsUnavailable:
    """Print the comparison; return the plot's file, or why there is none."""
    comparison = compare_scaling(scenario.traces, scenario.gpus, scenario.seconds)
    console.print(_scaling_table(comparison))
    for line in _savings(comparison):
        console.print(line, soft_wrap=True)
    try:
        plot_scaling(comparison, scenario.traces[0], options.output)
    except PlotsUnavailable as error:
        return error
    return options.output


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _routing_table(summaries: Mapping[str, Summary]) -> Table:
    table = _table(
        "routed by", "in time", "goodput", "p50", "p95", "p99", "per step", "GPU h", "full"
    )
    for name, summary in summaries.items():
        table.add_row(
            name,
            f"{summary.attained:.1%}",
            f"{summary.goodput:.1f}/s",
            f"{summary.p50:.1f} s",
            f"{summary.p95:.1f} s",
            f"{summary.p99:.1f} s",
            f"{summary.per_step:.2f} s",
            f"{summary.gpu_hours:.2f}",
            f"{summary.occupancy:.0%}",
        )
    return table


def _scaling_table(comparison: Comparison) -> Table:
    table = _table("replicas by", "", "in time", "range", "GPU h", "range", "p95")
    for setting in comparison.summaries:
        result = comparison.result(setting)
        min_attained, max_attained = result.attained_range
        min_hours, max_hours = result.gpu_hours_range
        table.add_row(
            setting.family,
            setting.name,
            f"{result.attained:.1%}",
            f"{100 * min_attained:.1f}-{100 * max_attained:.1f}",
            f"{result.gpu_hours:.2f}",
            f"{min_hours:.2f}-{max_hours:.2f}",
            f"{result.p95:.0f} s",
            style="bold" if setting is CHOSEN else "",
        )
    return table


def _savings(comparison: Comparison) -> list[str]:
    lines = [
        f"GPU-hours that {CHOSEN.family} ({CHOSEN.name}) saves with as many images in time, by "
        "medians (and on each trace, against the settings that were best for it):"
    ]
    for family in (TUNED, PROMPT, DEFAULT, ALL):
        by_trace = comparison.saved_by_trace(family)
        lines.append(
            f"  [bold]{comparison.saved(family):.0%}[/] against {family} "
            f"({median(by_trace):.0%}, from {min(by_trace):.0%} to {max(by_trace):.0%})"
        )
    return lines
