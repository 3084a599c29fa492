"""The plot of `aura bench serve`: throughput, latency under open load, and goodput."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from serve_app.bench.run_record import RunRecord
from serve_app.bench.serve.results import CLOSED, OPEN, OVERLOAD, Results
from serve_app.bench.serve.systems.on_ray import FAST, SERVE_BATCH, STRICT
from serve_app.simulator.plotting import DPI, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = {STRICT: "#2563eb", FAST: "#60a5fa"}
_RIVAL = {SERVE_BATCH: "#ea580c"}
_OTHERS = ("#0f766e", "#a855f7", "#78716c")
_ENGINE = "#cbd5e1"  # not a system that one could use


def plot_results(results: Results, record: RunRecord, output: Path) -> None:
    """Write the plot as a PNG file. Raises `PlotsUnavailable` without matplotlib."""
    figure = new_figure(11.5, 8.5)
    (throughput, goodput), (latency, by_steps) = figure.subplots(2, 2)
    colours = _colours(results)
    _plot_bars(throughput, results, CLOSED, colours)
    label_axes(throughput, f"saturated by {results.plan.clients} clients", "")
    _plot_bars(goodput, results, OVERLOAD, colours)
    label_axes(
        goodput,
        f"in time, {results.plan.deadline:g} s, at {results.overload_rate:.1f} requests a second",
        "",
    )
    for axes in (throughput, goodput):
        axes.set_xlabel("images per second", loc="right")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _plot_latency(latency, results, colours)
    label_axes(latency, f"latency at {results.rate:.2f} requests a second", "share of images ready")
    latency.set_xlabel("seconds", loc="right")
    _plot_by_steps(by_steps, results, colours)
    label_axes(by_steps, "median latency by requested steps", "seconds")
    by_steps.set_xlabel("requested steps", loc="right")
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(record.summary, x=0.01, ha="left", fontsize=9, color="#64748b")
    figure.savefig(output, dpi=DPI)


def _colours(results: Results) -> dict[str, str]:
    """Return a colour of its own for each system: blue for ours, orange for the closest rival."""
    colours = _OURS | _RIVAL | dict.fromkeys(results.notes.keys() - set(results.served), _ENGINE)
    others = (name for name in results.notes if name not in colours)
    return colours | dict(zip(others, _OTHERS, strict=False))


def _plot_bars(axes: "Axes", results: Results, load: str, colours: dict[str, str]) -> None:
    """Plot the pictures a second of each system, with the least and greatest of the rounds."""
    names = list(reversed(results.systems(load)))
    for row, name in enumerate(names):
        values = results.values(load, name, lambda measured: measured.throughput)
        middle = median(values)
        axes.barh(row, middle, color=colours[name], height=0.68)
        if len(values) > 1:
            axes.plot([min(values), max(values)], [row, row], color="#1e293b", lw=1.2)
        axes.annotate(
            f"{middle:.2f}",
            (max(values), row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#334155",
        )
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.12)


def _plot_latency(axes: "Axes", results: Results, colours: dict[str, str]) -> None:
    """Plot the share of images that were ready within each time, all rounds together."""
    for name in results.systems(OPEN):
        requests = sum(measured.requests for measured in results.by_load[OPEN][name])
        seconds = sorted(time for _, time in _times(results, name))
        shares = [(number + 1) / requests for number in range(len(seconds))]
        width = 2.4 if name in _OURS or name in _RIVAL else 1.4
        axes.step(
            [0.0, *seconds], [0.0, *shares], where="post", label=name, color=colours[name], lw=width
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)


def _plot_by_steps(axes: "Axes", results: Results, colours: dict[str, str]) -> None:
    """Plot the median latency of each step count: an image should cost what it asks for."""
    counts = sorted(set(results.plan.workload.steps))
    for name in results.systems(OPEN):
        medians = [_median_of(_times(results, name), steps) for steps in counts]
        points = [(s, m) for s, m in zip(counts, medians, strict=True) if m is not None]
        axes.plot(
            [steps for steps, _ in points],
            [seconds for _, seconds in points],
            color=colours[name],
            marker="o",
            ms=5,
            lw=2.0 if name in _OURS or name in _RIVAL else 1.2,
        )
    axes.set_xticks(counts)
    axes.margins(x=0.06)
    axes.set_ylim(bottom=0)


def _times(results: Results, name: str) -> list[tuple[int, float]]:
    return [pair for measured in results.by_load[OPEN][name] for pair in measured.times]


def _median_of(times: Sequence[tuple[int, float]], steps: int) -> float | None:
    found = [seconds for count, seconds in times if count == steps]
    return median(found) if found else None
