"""What is asked for: as often as meant, by equal seeds equally, and read from a file."""

from pathlib import Path
from random import Random

import pytest

from serve_app.core.errors import SettingsError
from serve_app.simulator.traces import WORKLOADS, Arrival, draw_trace, read_trace


@pytest.mark.parametrize("wave", WORKLOADS)
def test_as_many_images_come_as_the_rate_says(wave: str) -> None:
    trace = draw_trace(WORKLOADS[wave], rate=20.0, seconds=1200, draw=Random(1))
    assert len(trace) / 1200 == pytest.approx(20, rel=0.1)
    assert all(0 <= one.at < 1200 for one in trace)
    assert trace == draw_trace(WORKLOADS[wave], rate=20.0, seconds=1200, draw=Random(1))


def test_bursts_are_of_drafts_and_finals_in_turn() -> None:
    trace = draw_trace(WORKLOADS["bursts"], rate=20.0, seconds=480, draw=Random(1))
    finals = [one.steps for one in trace if one.at < 60]
    drafts = [one.steps for one in trace if 240 <= one.at < 300]
    between = [one for one in trace if 60 <= one.at < 120]
    assert min(finals) == 30 and max(drafts) == 8
    assert len(finals) > 3 * len(between) and len(drafts) > 3 * len(between)


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("at,steps,width\n2.5,30,832\n1,4,1024\n")
    assert read_trace(file) == [Arrival(1.0, 4, width=1024), Arrival(2.5, 30, width=832)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("at,steps\n1,many\n", "line 2: .*many.*; a trace has the columns at, steps, width"),
        ("at,stepz\n1,4\n", "line 2: 'stepz'"),
        ("at\n1\n", "line 2: .*steps.* at and steps must be there"),
    ],
)
def test_a_line_that_can_not_be_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        read_trace(file)
    with pytest.raises(SettingsError, match="can't be read"):
        read_trace(tmp_path / "none.csv")
