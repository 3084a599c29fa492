"""`Moment`: what is seen of an application at a time; and the picture of many.

Knows no Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve_app.bench.load_generator import Response
from serve_app.core.diffusion.spec import Stage

_COLOURS = {Stage.BASE: "#2563eb", Stage.REFINER: "#ea580c"}
_GREY = "#64748b"
_BIN = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """How many replicas there are, and what they have to do."""

    at: float  # seconds
    replicas: Mapping[Stage, int]  # at work
    changing: Mapping[Stage, int]  # that start or finish
    owed: Mapping[Stage, float]  # GPU-seconds of images under way

    def since(self, began: float) -> "TimelinePoint":
        """The same, so many seconds after the beginning."""
        return replace(self, at=self.at - began)


def plot_timeline(
    moments: Sequence[TimelinePoint], answers: Sequence[Response], gpus: int, output: Path
) -> None:
    """The PNG is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    asked, replicas, owed, images = figure.subplots(4, 1, sharex=True)
    at = [one.at for one in moments]
    _asked(asked, answers, at[-1])
    below = [0] * len(at)
    for stage in Stage:
        above = [b + one.replicas[stage] for b, one in zip(below, moments, strict=True)]
        replicas.fill_between(
            at, below, above, step="post", color=_COLOURS[stage], alpha=0.85, lw=0, label=stage
        )
        below = above
        owed.plot(at, [one.owed[stage] for one in moments], color=_COLOURS[stage], lw=1.8)
    held = [b + sum(one.changing.values()) for b, one in zip(below, moments, strict=True)]
    replicas.fill_between(
        at, below, held, step="post", color="#cbd5e1", lw=0, label="starting or finishing"
    )
    replicas.axhline(gpus, color=_GREY, lw=1, ls=(0, (4, 3)))
    replicas.text(at[-1], gpus + 0.1, f"{gpus} GPUs", ha="right", va="bottom", color=_GREY)
    under_way = [sum(one.under_way(when) for one in answers) for when in at]
    images.fill_between(at, under_way, color=_GREY, alpha=0.25, lw=0)
    images.plot(at, under_way, color=_GREY, lw=1.8)
    for axes, title, unit in (
        (asked, "images asked for", f"in {_BIN:g} s"),
        (replicas, "replicas", ""),
        (owed, "owed", "GPU-seconds"),
        (images, "images under way", ""),
    ):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    replicas.set_ylim(0, max(gpus, *held) + 0.8)
    replicas.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    images.set_xlim(0, at[-1])
    images.set_xlabel("seconds", loc="right")
    figure.savefig(output, dpi=130)


def _asked(axes: Any, answers: Sequence[Response], end: float) -> None:
    """The load, by where most of its steps are."""
    bins = [_BIN * number for number in range(int(end / _BIN) + 2)]
    early = [one.arrival.at for one in answers if one.arrival.handoff >= 0.5]
    late = [one.arrival.at for one in answers if one.arrival.handoff < 0.5]
    axes.hist(
        [early, late],
        bins=bins,
        stacked=True,
        color=[_COLOURS[Stage.BASE], _COLOURS[Stage.REFINER]],
        alpha=0.45,
        label=["mostly base", "mostly refiner"],
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
