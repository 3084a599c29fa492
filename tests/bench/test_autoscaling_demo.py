"""The load of the bench of scaling, and the picture of what is seen."""

from pathlib import Path

from PIL import Image

from serve_app.bench.autoscaling_demo import load
from serve_app.bench.load_generator import Response
from serve_app.bench.timeline import TimelinePoint, plot_timeline
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.traces import Arrival


def test_the_load_is_little_then_for_base_then_for_the_refiner_then_little() -> None:
    trace = load(1000, seed=1)
    parts = [
        (0, 100, 0.8, 0.25),
        (100, 450, 1.0, 2.2),
        (450, 700, 0.2, 1.6),
        (700, 1000, 0.8, 0.25),
    ]
    for begin, end, handoff, rate in parts:
        part = [one for one in trace if begin + 10 <= one.at < end]  # what comes was drawn before
        assert {one.handoff for one in part} == {handoff}
        assert 0.6 < len(part) / (end - begin - 10) / rate < 1.4
    assert load(1000, seed=1) == trace


def test_an_image_is_under_way_from_when_it_is_asked_for_to_its_answer() -> None:
    one = Response(Arrival(10.0, 30), seconds=5.0, status=201)
    assert [one.under_way(at) for at in (9.9, 10.0, 14.9, 15.0)] == [False, True, True, False]


def test_a_picture_of_what_was_seen_is_written(tmp_path: Path) -> None:
    none = dict.fromkeys(Stage, 0)
    moments = [
        TimelinePoint(
            at, {Stage.BASE: 1 + at // 4 % 2, Stage.REFINER: 1}, none, dict.fromkeys(Stage, 2.0)
        )
        for at in range(30)
    ]
    answers = [Response(Arrival(at, 30, handoff=0.1 * at), 5.0, 201) for at in range(10)]
    plot_timeline(moments, answers, 4, tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.size == (1430, 1170)
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 50
