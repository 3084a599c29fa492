"""Plots of a simulation: what was requested, how many replicas there were, and the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.core.diffusion.spec import Stage
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
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.traces import Arrival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#94a3b8"
_COLOURS = {
    OWED: "#2563eb",
    TUNED: "#ea580c",
    PROMPT: "#ca8a04",
    DEFAULT: "#7c3aed",
    ALL: "#475569",
}
_BARS = 200  # of the requested images, at most
_BAR_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


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
        shares = [100 * (number + 1) / len(seconds) for number in range(len(seconds))]
        latencies.plot(seconds, shares, color=colour)
    _label_over_time(in_flight, "images in flight", "", end)
    _add_legend(in_flight)
    label_axes(latencies, "latency", "% of images")
    latencies.set_xlabel("seconds", loc="right")
    latencies.set_xlim(left=0)
    latencies.set_ylim(0, 101)
    figure.savefig(output, dpi=DPI)


def plot_scaling(comparison: Comparison, trace: Sequence[Arrival], output: Path) -> None:
    """Write a PNG of `scaling_figure`. Raises `PlotsUnavailable`."""
    scaling_figure(comparison, trace).savefig(output, dpi=DPI)


def scaling_figure(comparison: Comparison, trace: Sequence[Arrival]) -> "Figure":
    """Return a figure of the first trace and of what each setting achieved on all traces.

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
            lw=1.8,
            label=f"{setting.family}\n{setting.name}",
        )
    _label_over_time(replicas, "replicas on the first trace", "base and refiner", end)
    _add_legend(replicas)
    for family, colour in _COLOURS.items():
        _plot_family(achieved, comparison, family, colour)
    label_axes(achieved, "each setting on all traces: medians, and every trace", "% in time")
    achieved.set_xlabel("GPU-hours", loc="right")
    low, high = achieved.get_ylim()
    achieved.set_ylim(min(low, 95), min(high, 101))
    _add_legend(achieved, title="settings from left to right")
    return figure


def middle_setting(comparison: Comparison, family: str) -> PolicySetting:
    """Return the middle one of a family's settings, as they are listed."""
    settings = comparison.settings_of(family)
    return settings[(len(settings) - 1) // 2]


def _plot_family(axes: "Axes", comparison: Comparison, family: str, colour: str) -> None:
    """Plot the settings of a family, which the legend names in the order of their GPU-hours.

    Names beside the points would cover each other: many settings do equally well.
    """
    settings = comparison.settings_of(family)
    for setting in settings:
        summaries = comparison.summaries[setting]
        hours = [summary.gpu_hours for summary in summaries]
        attained = [100 * summary.attained for summary in summaries]
        axes.scatter(hours, attained, s=16, color=colour, alpha=0.25, linewidths=0)
    points = sorted(
        (hours, 100 * share, setting.name)
        for (share, hours), setting in zip(comparison.points(family), settings, strict=True)
    )
    names = [name for _, _, name in points if name]
    axes.plot(
        [hours for hours, _, _ in points],
        [share for _, share, _ in points],
        "o-",
        color=colour,
        lw=1.8,
        label="\n   ".join((family, *names)),
    )


def _plot_requested(axes: "Axes", trace: Sequence[Arrival]) -> float:
    """Draw a histogram of the requested images; return where the time axis ends, in seconds."""
    last = max(arrival.at for arrival in trace)
    width = next((bar for bar in _BAR_SECONDS if last <= bar * _BARS), _BAR_SECONDS[-1])
    count = int(last / width) + 1
    axes.hist(
        [arrival.at for arrival in trace],
        bins=[width * number for number in range(count + 1)],
        color=_GREY,
        rwidth=0.9,
    )
    _label_over_time(axes, "requested images", f"in {width:g} s", count * width)
    return count * width


def _label_over_time(axes: "Axes", title: str, unit: str, end: float) -> None:
    label_axes(axes, title, unit)
    axes.set_xlabel("seconds", loc="right")
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.locator_params(axis="y", integer=True)


def _add_legend(axes: "Axes", title: str = "") -> None:
    """Put the legend beside the axes, where it covers nothing."""
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=9,
        alignment="left",
        labelspacing=0.8,
    )
