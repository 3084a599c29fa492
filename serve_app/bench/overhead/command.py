"""`aura bench overhead`: measure, print, write JSON, plot."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from serve_app.bench.overhead.plot import plot_overhead
from serve_app.bench.overhead.request import (
    BARE_PNG,
    GENERATE,
    HTTP,
    RAY_ALONE,
    REFINE,
    SIDES,
    RequestCosts,
    measure_requests,
)
from serve_app.bench.overhead.request import PARTS as REQUEST_PARTS
from serve_app.bench.overhead.step import PARTS as STEP_PARTS
from serve_app.bench.overhead.step import StepTimes, measure_steps
from serve_app.bench.run_record import RunRecord
from serve_app.core.errors import OperatorError

IMAGES = (1, 4, 8)  # that step together: 2, 8 and 16 rows
_TURNS = 60
_MEANING = {
    "validate": "body, validation",
    "base": "router, base",
    "refiner": "router, refiner, PNG",
    "make": "metadata, job",
    "write": "base64",
    HTTP: "proxy, ingress, client",
}
console = Console(highlight=False)


def measure(*, runs: int, threads: int, output: Path) -> None:
    """Print where time goes in a request and in a step; write the JSON and the plot."""
    record = RunRecord.now()
    with console.status("steps of the demo"):
        steps, bare = (
            [
                measure_steps(images, turns=_TURNS, threads=threads, computes=computes)
                for images in IMAGES
            ]
            for computes in (True, False)
        )
    requests = measure_requests(runs, console)
    console.print(record.summary, soft_wrap=True)
    console.print(_step_table(steps, bare))
    for side in SIDES:
        console.print(_request_table(requests, side))
        console.print(
            f"{GENERATE} minus {RAY_ALONE}, {side} x {side}, paired, ms: "
            f"{_cell(requests.excess(side), ' ')}"
        )
    numbers = output.with_suffix(".json")
    record.write(numbers, _to_json(steps, bare, requests))
    console.print(f"JSON: {numbers}")
    try:
        plot_overhead(steps, requests, record, output)
    except OperatorError as error:
        console.print(f"[yellow]{error}[/]")
    else:
        console.print(f"Plot: {output}")


def _step_table(steps: Sequence[StepTimes], bare: Sequence[StepTimes]) -> Table:
    table = Table(
        title="One step on the demo: median ms of each part",
        caption=f"{_TURNS} steps of each. The rest is the engine's bookkeeping, all but the UNet: "
        "its median, and the median of its share. Bare: its median with a UNet that "
        "computes nothing, and so leaves the processor's caches as they are",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("images", "rows", *STEP_PARTS, "rest", "share", "bare"):
        table.add_column(heading, justify="right")
    for times, own_bare in zip(steps, bare, strict=True):
        parts = [f"{times.part(number):.2f}" for number in range(len(STEP_PARTS))]
        table.add_row(
            str(times.images),
            str(times.lanes),
            *parts,
            f"[bold]{times.bookkeeping:.2f}[/]",
            f"[bold]{times.share:.1%}[/]",
            f"[bold]{own_bare.bookkeeping:.2f}[/]",
        )
    return table


def _request_table(costs: RequestCosts, side: int) -> Table:
    labels = (GENERATE, RAY_ALONE, BARE_PNG, REFINE)
    runs = len(costs.times[side, GENERATE].whole)
    table = Table(
        title=f"A request of {side} x {side} outside the engine: ms",
        caption=f"{runs} runs of each, in turn: median \\[5th, 95th percentile]. The PNG has "
        f"{costs.sizes[side] / 1000:,.0f} kB, and its encoding, {costs.encoding[side]:.1f} ms in "
        "the replica, is not in it. Ray alone: the same calls and bytes without the service",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right")
    for part in REQUEST_PARTS:
        values = [costs.times[side, label].parts.get(part) for label in labels]
        table.add_row(_MEANING[part], *(_cell(found) if found else "" for found in values))
    wholes = [_cell(costs.times[side, label].whole) for label in labels]
    table.add_row("whole", *wholes, style="bold")
    return table


def _cell(milliseconds: Sequence[float], separator: str = "\n") -> str:
    cuts = statistics.quantiles(milliseconds, n=20)
    middle = statistics.median(milliseconds)
    return f"{middle:.1f}{separator}[dim]\\[{cuts[0]:.1f}, {cuts[-1]:.1f}][/]"


def _to_json(
    steps: Sequence[StepTimes], bare: Sequence[StepTimes], requests: RequestCosts
) -> dict[str, object]:
    return {
        "steps": [asdict(times) | {"parts": STEP_PARTS} for times in steps],
        "bareSteps": [asdict(times) | {"parts": STEP_PARTS} for times in bare],
        "requests": [
            {"side": side, "case": label} | asdict(times)
            for (side, label), times in requests.times.items()
        ],
        "encoding": requests.encoding,
        "pngBytes": requests.sizes,
    }
