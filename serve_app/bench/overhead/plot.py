"""The plot of `aura bench overhead`: the parts of a step and of a request, as stacked bars."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from serve_app.bench.overhead.request import (
    BARE_PNG,
    GENERATE,
    HTTP,
    PARTS,
    RAY_ALONE,
    SIDES,
    RequestCosts,
)
from serve_app.bench.overhead.step import PARTS as STEP_PARTS
from serve_app.bench.overhead.step import StepTimes
from serve_app.bench.run_record import RunRecord
from serve_app.simulator.plotting import DPI, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "validate": "#93c5fd",
    "base": "#2563eb",
    "refiner": "#1e40af",
    "make": "#0f766e",
    "write": "#5eead4",
    HTTP: "#fb923c",
}
_NAMES = {
    "validate": "body, validation",
    "base": "router, call of base",
    "refiner": "router, call of the refiner",
    "make": "metadata",
    "write": "base64",
    HTTP: "proxy, ingress, client",
}
_STEP_COLOURS = ("#93c5fd", "#e2e8f0", "#2563eb", "#0f766e")


def plot_overhead(
    steps: Sequence[StepTimes], costs: RequestCosts, record: RunRecord, output: Path
) -> None:
    """Write the plot as a PNG file. Raises `PlotsUnavailable` without matplotlib."""
    figure = new_figure(11.5, 7.5)
    request, step = figure.subplots(2, 1, height_ratios=[5, 3])
    _plot_requests(request, costs)
    label_axes(request, "a request outside the engine", "")
    _plot_steps(step, steps)
    label_axes(step, "the engine's bookkeeping in one step of the demo, beside the UNet", "")
    for axes in (request, step):
        axes.set_xlabel("milliseconds", loc="right")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(record.summary, x=0.01, ha="left", fontsize=9, color="#64748b")
    figure.savefig(output, dpi=DPI)


def _plot_requests(axes: "Axes", costs: RequestCosts) -> None:
    rows = [(side, label) for side in SIDES for label in (GENERATE, BARE_PNG, RAY_ALONE)]
    rows.reverse()
    left = [0.0] * len(rows)
    for part in PARTS:
        widths = [median(costs.times[row].parts.get(part, [0.0])) for row in rows]
        axes.barh(
            range(len(rows)),
            widths,
            left=left,
            height=0.7,
            color=_COLOURS[part],
            label=_NAMES[part],
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    _label_ends(axes, left, "{:.1f}")
    axes.set_yticks(range(len(rows)), [f"{label}, {side}²" for side, label in rows])


def _plot_steps(axes: "Axes", steps: Sequence[StepTimes]) -> None:
    rows = list(reversed(steps))
    left = [0.0] * len(rows)
    for number, name in enumerate(STEP_PARTS):
        if name == "UNet":
            continue
        widths = [times.part(number) for times in rows]
        axes.barh(
            range(len(rows)), widths, left=left, height=0.7, color=_STEP_COLOURS[number], label=name
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, (times, end) in enumerate(zip(rows, left, strict=True)):
        unet = times.part(STEP_PARTS.index("UNet"))
        text = f"{times.bookkeeping:.2f} ms, {times.share:.1%} of {unet + times.bookkeeping:.0f} ms"
        _annotate(axes, row, end, text)
    axes.set_yticks(range(len(rows)), [f"{times.lanes} rows" for times in rows])
    axes.margins(x=0.25)


def _label_ends(axes: "Axes", ends: Sequence[float], form: str) -> None:
    for row, end in enumerate(ends):
        _annotate(axes, row, end, form.format(end))
    axes.margins(x=0.08)


def _annotate(axes: "Axes", row: int, end: float, text: str) -> None:
    axes.annotate(
        text,
        (end, row),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color="#334155",
    )
