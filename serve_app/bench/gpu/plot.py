"""The plot of `aura bench gpu`: TFLOP/s of a step by rows and option, and the ceiling."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_app.bench.gpu.unet import StepTime
from serve_app.bench.run_record import RunRecord
from serve_app.simulator.plotting import DPI, label_axes, new_figure

_PRECISION = "bf16"


def plot_gpu(
    steps: Sequence[StepTime], ceilings: Mapping[str, float], record: RunRecord, output: Path
) -> None:
    """Write the plot as a PNG file. Raises `PlotsUnavailable` without matplotlib."""
    figure = new_figure(10, 5)
    axes = figure.subplots()
    lines: dict[str, list[StepTime]] = {}
    for found in steps:
        if found.precision == _PRECISION and found.seconds is not None:
            lines.setdefault(f"{found.option}, {found.side} x {found.side}", []).append(found)
    for label, points in lines.items():
        rows, tflops = [point.rows for point in points], [point.tflops for point in points]
        axes.plot(rows, tflops, marker="o", label=label)
    if _PRECISION in ceilings:
        axes.axhline(ceilings[_PRECISION], color="#64748b", linestyle=":", label="matrix product")
    label_axes(axes, f"one step of the UNet in {_PRECISION}", "TFLOP/s")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows", loc="right")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(record.summary, x=0.01, ha="left", fontsize=9, color="#64748b")
    figure.savefig(output, dpi=DPI)
