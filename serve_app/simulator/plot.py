"""Plots of a simulation: what was requested, how many replicas there were, and the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import SimulationResult
from serve_app.simulator.comparison import (
    ALL,
    CHOSEN,
    DEFAULT,
    OWED,
    PROMPT,
    TUNED,
    Comparison,
    PolicySetting,
)
from serve_app.simulator.plotting import DPI, label_axes, new_figure
from serve_app.simulator.traces import Arrival

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    """Write a PNG of the requested images, the images in flight, and their latencies.

    Raises `PlotsUnavailable`.
    """
    figure = new_figure()
    requested, in_flight, latencies = figure.subplots(3, 1)
    end = _plot_requested(requested, trace)
    for (name, run), colour in zip(runs.items(), _COLOURS.values(), strict=False):
        at = [point.at for point in run.timeline]
        in_flight.plot(at, [point.images for point in run.timeline], color=colour, label=name)
        seconds = sorted(image.seconds for image in run.finished)
        shares = [(number + 1) / len(seconds) for number in range(len(seconds))]
        latencies.plot(seconds, shares, color=colour)
    _label_over_time(in_flight, "images in flight", "", end)
    in_flight.legend(loc="upper left", frameon=False)
    label_axes(latencies, "latency", "share of images")
    latencies.set_xlabel("seconds", loc="right")
    latencies.set_xlim(left=0)
    latencies.set_ylim(0, 1)
    figure.savefig(output, dpi=DPI)


def plot_scaling(comparison: Comparison, trace: Sequence[Arrival], output: Path) -> None:
    """Write a PNG of the first trace and of what each setting achieved on all traces.

    Of the first trace it shows the requested images and the number of replicas, under the chosen
    setting and under the middle setting of two other families. Raises `PlotsUnavailable`.
    """
    figure = new_figure()
    requested, replicas, achieved = figure.subplots(3, 1, height_ratios=(1, 1.4, 2.2))
    end = _plot_requested(requested, trace)
    for setting in (CHOSEN, middle_setting(comparison, TUNED), middle_setting(comparison, DEFAULT)):
        points = comparison.timelines[setting]
        replicas.step(
            [point.at for point in points],
            [sum(point.replicas[stage] for stage in Stage) for point in points],
            where="post",
            color=_COLOURS[setting.family],
            label=f"{setting.family}, {setting.name}",
        )
    _label_over_time(replicas, "replicas", "base and refiner", end)
    replicas.yaxis.get_major_locator().set_params(integer=True)
    replicas.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for family, colour in _COLOURS.items():
        _plot_family(achieved, comparison, family, colour)
    label_axes(achieved, "each setting: medians, and every trace", "% of images in time")
    achieved.set_xlabel("GPU-hours", loc="right")
    achieved.margins(x=0.09)  # so that the labels fit
    achieved.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(output, dpi=DPI)


def middle_setting(comparison: Comparison, family: str) -> PolicySetting:
    """Return the middle one of a family's settings, as they are listed."""
    settings = comparison.settings_of(family)
    return settings[(len(settings) - 1) // 2]


def _plot_family(axes: "Axes", comparison: Comparison, family: str, colour: str) -> None:
    # Labels of neighbouring families go to different sides, so that none covers another.
    above, on_left = family in (OWED, PROMPT), family == OWED
    for setting in comparison.settings_of(family):
        summaries = comparison.summaries[setting]
        hours = [summary.gpu_hours for summary in summaries]
        attained = [100 * summary.attained for summary in summaries]
        axes.scatter(hours, attained, s=14, color=colour, alpha=0.25, linewidths=0)
        axes.annotate(
            setting.name,
            (median(hours), median(attained)),
            xytext=(-6 if on_left else 6, 6 if above else -11),
            ha="right" if on_left else "left",
            textcoords="offset points",
            fontsize=8,
        )
    points = sorted((hours, 100 * share) for share, hours in comparison.points(family))
    axes.plot(*zip(*points, strict=True), "o-", color=colour, label=family)


def _plot_requested(axes: "Axes", trace: Sequence[Arrival]) -> float:
    """Draw a histogram of the requested images; return when the last one arrives, in seconds."""
    end = max(arrival.at for arrival in trace)
    bins = [_BIN * number for number in range(int(end / _BIN) + 2)]
    axes.hist([arrival.at for arrival in trace], bins=bins, color=_GREY)
    _label_over_time(axes, "requested images", f"in {_BIN:g} s", end)
    return end


def _label_over_time(axes: "Axes", title: str, unit: str, end: float) -> None:
    label_axes(axes, title, unit)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
