"""What the plot of a comparison shows, and that it can be read."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text

from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.comparison import ALL, PROMPT, SETTINGS, TUNED, Comparison
from serve_app.simulator.plot import middle_setting, scaling_figure
from serve_app.simulator.result import TimelinePoint
from serve_app.simulator.summary import Summary
from serve_app.simulator.traces import Arrival

SUMMARY = Summary(
    images=2,
    goodput=0.2,
    ideal=0.2,
    attained=1,
    p50=1,
    p95=2,
    p99=3,
    per_step=0.1,
    gpu_hours=1,
    occupancy=0.5,
)


@pytest.mark.parametrize(("family", "index"), [(TUNED, 1), (PROMPT, 0), (ALL, 0)])
def test_the_middle_setting_of_a_family_is_plotted(family: str, index: int) -> None:
    comparison = Comparison(summaries={setting: [] for setting in SETTINGS}, timelines={})
    expected = [setting for setting in SETTINGS if setting.family == family][index]
    assert middle_setting(comparison, family) == expected


@pytest.mark.parametrize("hours", [lambda number: 1.0, lambda number: 1 + number / 50])
def test_no_text_of_the_plot_covers_another(hours: Callable[[int], float], tmp_path: Path) -> None:
    summaries = {
        setting: [replace(SUMMARY, gpu_hours=hours(number))]
        for number, setting in enumerate(SETTINGS)
    }
    replicas = dict.fromkeys(Stage, 2)
    points = [TimelinePoint(at, replicas, {}, 3, {}) for at in (0.0, 8.0)]
    comparison = Comparison(summaries, dict.fromkeys(SETTINGS, points))
    figure = scaling_figure(comparison, [Arrival(0.0, 20), Arrival(8.0, 30)])
    figure.savefig(tmp_path / "out.png")
    texts = [text for text in figure.findobj(Text) if set(text.get_text()) - set("0123456789.")]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert {name for setting in SETTINGS for name in [setting.name] if name} <= {
        line.strip() for name, _ in boxes for line in name.splitlines()
    }
    for (text, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (text, other)
