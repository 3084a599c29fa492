"""Traces have the intended rate, are equal for equal seeds, and can be read from a file."""

from pathlib import Path
from random import Random

import pytest

from serve_app.core.diffusion.spec import StepCache
from serve_app.simulator.image import image_of
from serve_app.simulator.traces import WORKLOADS, Arrival, TraceError, draw_trace, read_trace


@pytest.mark.parametrize("workload", WORKLOADS)
def test_as_many_images_arrive_as_the_rate_says(workload: str) -> None:
    trace = draw_trace(WORKLOADS[workload], rate=20.0, seconds=1200, rng=Random(1))
    assert len(trace) / 1200 == pytest.approx(20, rel=0.1)
    assert all(0 <= arrival.at < 1200 for arrival in trace)
    assert trace == draw_trace(WORKLOADS[workload], rate=20.0, seconds=1200, rng=Random(1))


def test_bursts_are_of_drafts_and_finals_in_turn() -> None:
    trace = draw_trace(WORKLOADS["bursts"], rate=20.0, seconds=480, rng=Random(1))
    finals = [arrival.steps for arrival in trace if arrival.at < 60]
    drafts = [arrival.steps for arrival in trace if 240 <= arrival.at < 300]
    between = [arrival for arrival in trace if 60 <= arrival.at < 120]
    assert min(finals) == 30
    assert max(drafts) == 8
    assert len(finals) > 3 * len(between)
    assert len(drafts) > 3 * len(between)


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("at,steps,width\n2.5,30,832\n1,4,1024\n")
    assert read_trace(file) == [Arrival(1.0, 4, width=1024), Arrival(2.5, 30, width=832)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("at,steps\n1,many\n", "line 2: steps must be a whole number, got many$"),
        ("at,steps\n1,4\n1,\n", "line 3: steps must be a whole number, got nothing$"),
        ("at,steps\n1\n", "line 2: steps must be .*, got nothing$"),
        ("at,steps\nnan,4\n", "line 2: at must be a finite number, got nan$"),
        ("at,steps\n-1,4\n", "line 2: at must be at least 0, got -1$"),
        ("at,steps\n1,900\n", "line 2: steps must be at most 150, got 900$"),
        ("at,steps,width\n1,4,100\n", "line 2: width must be a multiple of 8, got 100$"),
        ("at,stepz\n1,4\n", r"has an unknown column stepz\. Did you mean steps\?$"),
        ("at,steps,colour\n1,4,5\n", r"column colour\. The columns are at, steps, width"),
        ("at,steps\n1,4,5\n", "line 2 has more values than there are columns$"),
        ("at,steps\n", "has no images"),
        ("at\n1\n", r"has no column steps\. .* at and steps are required$"),
        ("", r"has no column at\."),
        ('at,steps\n"1,4\n', "is no CSV file: "),
    ],
)
def test_a_line_that_is_not_a_requested_image_is_reported(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=sentence):
        read_trace(file)
    with pytest.raises(TraceError, match="can't be read"):
        read_trace(tmp_path / "none.csv")


def test_a_trace_may_have_guidance_intervals_and_step_caches(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "at,steps,guidance_low,guidance_high,cache\n1,20,0.28,5.42,deepcache\n2,20,0,5,off\n"
    )
    first, second = (image_of(arrival, refiner=False)[0] for arrival in read_trace(file))
    assert (first.guidance_interval, first.cache) == ((0.28, 5.42), StepCache.DEEPCACHE)
    assert (second.guidance_interval, second.cache) == ((0.0, 5.0), StepCache.OFF)
    file.write_text("at,steps,guidance_low,guidance_high\n1,20,5,5\n")
    with pytest.raises(TraceError, match="line 2: guidance_low must be below guidance_high, got 5"):
        read_trace(file)
