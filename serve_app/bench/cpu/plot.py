"""The plot of `aura bench cpu`: seconds of a step by each way to run the UNet."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from serve_app.bench.cpu.unet_step import StepTimes
from serve_app.bench.run_record import RunRecord
from serve_app.simulator.plotting import DPI, label_axes, new_figure

_COLOURS = ("#93c5fd", "#2563eb")
_HEIGHT = 0.38


def plot_cpu(found: Mapping[str, StepTimes], side: int, record: RunRecord, output: Path) -> None:
    """Write the plot as a PNG file. Raises `PlotsUnavailable` without matplotlib."""
    figure = new_figure(10, 1.6 + 0.6 * len(found))
    axes = figure.subplots()
    labels = list(found)
    for number, rows in enumerate(next(iter(found.values())).seconds):
        seconds = [median(times.seconds[rows]) for times in found.values()]
        places = [place + (number - 0.5) * _HEIGHT for place in range(len(labels))]
        name = f"{rows} rows" if rows > 1 else "1 row"
        bars = axes.barh(places, seconds, height=_HEIGHT, color=_COLOURS[number], label=name)
        axes.bar_label(bars, fmt="%.3g", padding=4, fontsize=9)
    label_axes(axes, f"one step of the UNet at {side} x {side}", "")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("seconds", loc="right")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.suptitle(record.summary, x=0.01, ha="left", fontsize=9, color="#64748b")
    figure.savefig(output, dpi=DPI)
