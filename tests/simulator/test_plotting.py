"""Figures with matplotlib, and a clear error without it."""

from pathlib import Path

import pytest
from PIL import Image

from serve_app.simulator.plotting import DPI, PlotsUnavailable, label_axes, new_figure
from tests.support.blocked_imports import blocked_imports


def test_a_figure_is_drawn_without_a_display(tmp_path: Path) -> None:
    figure = new_figure(3, 2)
    axes = figure.subplots()
    label_axes(axes, "replicas", "base")
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("replicas", "base")
    figure.savefig(tmp_path / "figure.png", dpi=DPI)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (3 * DPI, 2 * DPI)


def test_without_matplotlib_the_error_names_the_extra() -> None:
    with blocked_imports("matplotlib"), pytest.raises(PlotsUnavailable) as caught:
        new_figure()
    assert caught.value.remedy == "Install it with: pip install 'aura-serve[plots]'"
    new_figure()
