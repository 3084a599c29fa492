"""Figures for the commands that draw: the one place that imports matplotlib, an optional extra."""

from typing import TYPE_CHECKING

from serve_app.core.errors import OperatorError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS_EXTRA = "aura-serve[plots]"
DPI = 130


class PlotsUnavailable(OperatorError):
    """Matplotlib is not installed; everything but the plot works without it."""

    code = "PLOTS_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "is not installed, so no plot was written",
            subject="matplotlib",
            remedy=f"Install it with: pip install '{PLOTS_EXTRA}'",
        )


def new_figure(width: float = 11, height: float = 9) -> "Figure":
    """Return an empty figure, its size in inches, that needs no display.

    Raises `PlotsUnavailable` when matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotsUnavailable from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: "Axes", title: str, unit: str) -> None:
    """Give axes a title, a unit on the left, and a light grid behind the data, without a frame."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#64748b")
    axes.tick_params(color="#64748b", labelsize=9)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
