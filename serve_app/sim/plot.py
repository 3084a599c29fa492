"""The picture of a simulation: what was asked for, how many replicas there were, how long it took.

Knows no policies, only what became of each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.sim.cluster import Run
from serve_app.sim.trace import Arrival

_COLOURS = ("#2563eb", "#ea580c", "#d97706", "#ca8a04", "#6b7280", "#7c3aed")
_BIN = 5.0  # seconds


def plot(runs: Mapping[str, Run], trace: Sequence[Arrival], output: Path) -> None:
    """The PNG is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    asked, replicas, images, times = figure.subplots(4, 1)
    end = max(one.at for one in trace)
    bins = [_BIN * number for number in range(int(end / _BIN) + 2)]
    asked.hist([one.at for one in trace], bins=bins, color="#94a3b8")
    _named(asked, "images asked for", f"in {_BIN:g} s", end)
    for (name, run), colour in zip(runs.items(), _COLOURS, strict=False):
        at = [one.at for one in run.moments]
        replicas.step(
            at,
            [sum(one.replicas.values()) for one in run.moments],
            where="post",
            color=colour,
            label=name,
        )
        images.plot(at, [one.images for one in run.moments], color=colour)
        seconds = sorted(one.seconds for one in run.done)
        shares = [(number + 1) / len(seconds) for number in range(len(seconds))]
        times.plot(seconds, shares, color=colour)
    _named(replicas, "replicas", "base and refiner", end)
    replicas.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _named(images, "images under way", "", end)
    times.set_xlabel("seconds", loc="right")
    times.set_title("from asking to having it", loc="left", fontsize=11, fontweight="bold")
    times.set_ylabel("share of images")
    times.set_xlim(left=0)
    times.set_ylim(0, 1)
    for axes in (asked, replicas, images, times):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(output, dpi=130)


def _named(axes: Any, title: str, unit: str, end: float) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
