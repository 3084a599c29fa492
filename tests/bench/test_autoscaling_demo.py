"""The load of the autoscaling demo, and the plot of what it observes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.bench.autoscaling_demo import load
from serve_app.bench.load_generator import Response
from serve_app.bench.timeline import plot_timeline
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.traces import Arrival
from serve_app.testing.sleeping_service import Observation

BLUE, ORANGE = (37, 99, 235), (234, 88, 12)  # of the plot's base and refiner


def test_the_load_is_light_then_on_base_then_on_the_refiner_then_light() -> None:
    trace = load(1000, seed=1)
    phases = [
        (0, 100, 0.8, 0.25),
        (100, 450, 1.0, 2.2),
        (450, 700, 0.2, 1.6),
        (700, 1000, 0.8, 0.25),
    ]
    for start, end, handoff, rate in phases:
        phase = [arrival for arrival in trace if start + 10 <= arrival.at < end]
        assert {arrival.handoff for arrival in phase} == {handoff}
        assert 0.6 < len(phase) / (end - start - 10) / rate < 1.4
    assert load(1000, seed=1) == trace


def test_an_image_is_in_flight_from_its_request_to_its_response() -> None:
    response = Response(Arrival(10.0, 30), seconds=5.0, status=201)
    in_flight = [response.in_flight(at) for at in (9.9, 10.0, 14.9, 15.0)]
    assert in_flight == [False, True, True, False]


def area(path: Path, colour: tuple[int, int, int]) -> int:
    """Return how many pixels of a plot are nearly of a colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    return int((np.abs(pixels - colour).max(axis=2) < 45).sum())


def observation(at: float, base: int, refiner: int) -> Observation:
    nothing = dict.fromkeys(Stage, 0)
    replicas = {Stage.BASE: base, Stage.REFINER: refiner}
    return Observation(at, replicas, nothing, dict.fromkeys(Stage, 2.0))


def test_the_plot_has_more_of_the_stage_that_has_more_replicas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    responses = [Response(Arrival(at, 30), 5.0, 201) for at in range(10)]
    base, refiner = list[int](), list[int]()
    for replicas in (1, 2, 3):
        timeline = [observation(at, replicas, 4 - replicas) for at in range(30)]
        output = tmp_path / f"{replicas}.png"
        plot_timeline(timeline, responses, 4, output)
        base.append(area(output, BLUE))
        refiner.append(area(output, ORANGE))
    assert all(more > less for less, more in pairwise(base))
    assert all(more < less for less, more in pairwise(refiner))
