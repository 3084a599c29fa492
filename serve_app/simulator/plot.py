"""The picture of a simulation: what was asked for, how many replicas there were, what became of it.

Knows no policies, only what became of each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from serve_app.simulator.cluster import SimulationResult
from serve_app.simulator.comparison import ALL, CHOSEN, DEFAULT, OWED, PROMPT, TUNED, Comparison
from serve_app.simulator.traces import Arrival

_GREY = "#94a3b8"
_COLOURS = {
    OWED: "#2563eb",
    TUNED: "#ea580c",
    PROMPT: "#ca8a04",
    DEFAULT: "#7c3aed",
    ALL: "#475569",
}
_BIN = 5.0  # seconds


def plot_routing(
    runs: Mapping[str, SimulationResult], trace: Sequence[Arrival], output: Path
) -> None:
    """The PNG is written: what was asked for, what was under way, and how long it took."""
    figure = _figure()
    asked, images, times = figure.subplots(3, 1)
    end = _asked(asked, trace)
    for (name, run), colour in zip(runs.items(), _COLOURS.values(), strict=False):
        at = [one.at for one in run.timeline]
        images.plot(at, [one.images for one in run.timeline], color=colour, label=name)
        seconds = sorted(one.seconds for one in run.finished)
        shares = [(number + 1) / len(seconds) for number in range(len(seconds))]
        times.plot(seconds, shares, color=colour)
    _over_time(images, "images under way", "", end)
    images.legend(loc="upper left", frameon=False)
    _named(times, "from asking to having it", "share of images")
    times.set_xlabel("seconds", loc="right")
    times.set_xlim(left=0)
    times.set_ylim(0, 1)
    figure.savefig(output, dpi=130)


def plot_scaling(compared: Comparison, trace: Sequence[Arrival], output: Path) -> None:
    """The PNG is written: of the first trace what was asked for and the replicas that there were,
    by the chosen setting and by those in the middle of two other families; of all traces what
    each setting came to."""
    figure = _figure()
    asked, replicas, reached = figure.subplots(3, 1, height_ratios=(1, 1.4, 2.2))
    end = _asked(asked, trace)
    for setting in (CHOSEN, _middle(compared, TUNED), _middle(compared, DEFAULT)):
        moments = compared.moments[setting]
        replicas.step(
            [one.at for one in moments],
            [sum(one.replicas.values()) for one in moments],
            where="post",
            color=_COLOURS[setting.family],
            label=f"{setting.family}, {setting.name}",
        )
    _over_time(replicas, "replicas", "base and refiner", end)
    replicas.yaxis.get_major_locator().set_params(integer=True)
    replicas.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for family, colour in _COLOURS.items():
        settings = [one for one in compared.outcomes if one.family == family]
        above, left = family in (OWED, PROMPT), family == OWED  # labels clear of those beside them
        for setting in settings:
            outcomes = compared.outcomes[setting]
            hours = [one.gpu_hours for one in outcomes]
            attained = [100 * one.attained for one in outcomes]
            reached.scatter(hours, attained, s=14, color=colour, alpha=0.25, linewidths=0)
            at = (median(hours), median(attained))
            reached.annotate(
                setting.name,
                at,
                xytext=(-6 if left else 6, 6 if above else -11),
                ha="right" if left else "left",
                textcoords="offset points",
                fontsize=8,
            )
        points = sorted((hours, 100 * share) for share, hours in compared.points(family))
        reached.plot(*zip(*points, strict=True), "o-", color=colour, label=family)
    _named(reached, "what each setting came to: medians, and every trace", "% of images in time")
    reached.set_xlabel("GPU-hours", loc="right")
    reached.margins(x=0.09)  # labels have room
    reached.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(output, dpi=130)


def _middle(compared: Comparison, family: str) -> Any:
    settings = [one for one in compared.outcomes if one.family == family]
    return settings[(len(settings) - 1) // 2]


def _figure() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _asked(axes: Any, trace: Sequence[Arrival]) -> float:
    """The images asked for are drawn; when the last one is."""
    end = max(one.at for one in trace)
    bins = [_BIN * number for number in range(int(end / _BIN) + 2)]
    axes.hist([one.at for one in trace], bins=bins, color=_GREY)
    _over_time(axes, "images asked for", f"in {_BIN:g} s", end)
    return end


def _over_time(axes: Any, title: str, unit: str, end: float) -> None:
    _named(axes, title, unit)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)


def _named(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
