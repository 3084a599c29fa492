"""The plot of an application's replicas and load over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.bench.load_generator import Response
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.plotting import DPI, label_axes, new_figure
from serve_app.testing.sleeping_service import Observation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {Stage.BASE: "#2563eb", Stage.REFINER: "#ea580c"}
_GREY = "#64748b"
_BIN = 5.0  # seconds


def plot_timeline(
    timeline: Sequence[Observation], responses: Sequence[Response], gpus: int, output: Path
) -> None:
    """Write the plot as a PNG file. Raises `PlotsUnavailable` without matplotlib."""
    figure = new_figure()
    requests, replicas, owed, images = figure.subplots(4, 1, sharex=True)
    at = [point.at for point in timeline]
    _plot_requests(requests, responses, at[-1])
    bottom = [0] * len(at)
    for stage in Stage:
        top = [low + point.replicas[stage] for low, point in zip(bottom, timeline, strict=True)]
        replicas.fill_between(
            at, bottom, top, step="post", color=_COLOURS[stage], alpha=0.85, lw=0, label=stage
        )
        bottom = top
        owed.plot(at, [point.owed[stage] for point in timeline], color=_COLOURS[stage], lw=1.8)
    top = [low + sum(point.changing.values()) for low, point in zip(bottom, timeline, strict=True)]
    replicas.fill_between(
        at, bottom, top, step="post", color="#cbd5e1", lw=0, label="starting or draining"
    )
    replicas.axhline(gpus, color=_GREY, lw=1, ls=(0, (4, 3)))
    replicas.text(at[-1], gpus + 0.1, f"{gpus} GPUs", ha="right", va="bottom", color=_GREY)
    in_flight = [sum(response.in_flight(time) for response in responses) for time in at]
    images.fill_between(at, in_flight, color=_GREY, alpha=0.25, lw=0)
    images.plot(at, in_flight, color=_GREY, lw=1.8)
    for axes, title, unit in (
        (requests, "requested images", f"per {_BIN:g} s"),
        (replicas, "replicas", ""),
        (owed, "owed work", "GPU seconds"),
        (images, "images in flight", ""),
    ):
        label_axes(axes, title, unit)
        axes.set_ylim(bottom=0)
        axes.set_axisbelow(True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    replicas.set_ylim(0, max(gpus, *top) + 0.8)
    replicas.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    images.set_xlim(0, at[-1])
    images.set_xlabel("seconds", loc="right")
    figure.savefig(output, dpi=DPI)


def _plot_requests(axes: "Axes", responses: Sequence[Response], end: float) -> None:
    """Plot the load, split by the stage that runs most of an image's steps."""
    bins = [_BIN * number for number in range(int(end / _BIN) + 2)]
    arrivals = [response.arrival for response in responses]
    axes.hist(
        [
            [arrival.at for arrival in arrivals if arrival.handoff >= 0.5],
            [arrival.at for arrival in arrivals if arrival.handoff < 0.5],
        ],
        bins=bins,
        stacked=True,
        color=[_COLOURS[Stage.BASE], _COLOURS[Stage.REFINER]],
        alpha=0.45,
        label=["mostly base", "mostly refiner"],
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
