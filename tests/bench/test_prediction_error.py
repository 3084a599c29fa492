"""The benchmark of predictions, on a clock that counts: every reading is one second later."""

import random
from collections.abc import Iterator
from itertools import count

import pytest

from serve_app.bench.prediction_error import Queue, measure, quantile
from serve_app.runtime.memory.device import Device, open_device


@pytest.fixture
def device() -> Device:
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)


def ticks() -> Iterator[float]:
    return map(float, count())


@pytest.mark.long
def test_a_queue_that_has_measured_its_turns_predicts_a_steady_clock(device: Device) -> None:
    """Every engine turn takes the same number of readings, so measured costs are nearly exact."""
    clock = ticks()
    queue = Queue(lambda: next(clock), device)
    measure(queue, 2, random.Random(0), steps=(3, 6))
    errors = measure(queue, 2, random.Random(0), steps=(3, 6))
    assert sorted(map(len, errors.values())) == [1, 2, 2, 4]
    assert max(abs(error) for values in errors.values() for error in values) < 0.5


def test_a_quantile_ignores_signs() -> None:
    assert quantile([-3.0, 1.0, 2.0, -4.0], 0.5) == 2.0
    assert quantile([-3.0, 1.0, 2.0, -4.0], 0.9) == 4.0
