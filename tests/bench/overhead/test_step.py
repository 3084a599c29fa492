"""The parts of a step, from the engine's records and hooks on the UNet."""

import pytest

from serve_app.bench.overhead.step import PARTS, StepTimes, measure_steps


def test_each_step_has_its_own_call_of_the_unet() -> None:
    times = measure_steps(2, turns=4, threads=1)
    assert (times.images, times.lanes, len(times.turns)) == (2, 4, 4)
    for turn in times.turns:
        assert len(turn) == len(PARTS)
        assert all(part > 0 for part in turn)
    unet = PARTS.index("UNet")
    assert times.part(unet) > 10 * times.bookkeeping


def test_a_unet_that_computes_nothing_leaves_the_bookkeeping() -> None:
    times = measure_steps(2, turns=4, threads=1, computes=False)
    assert times.part(PARTS.index("UNet")) < times.bookkeeping


def test_bookkeeping_is_all_but_the_unet() -> None:
    times = StepTimes(1, 2, ((1.0, 96.0, 2.0, 1.0), (2.0, 196.0, 1.0, 1.0), (1.0, 97.0, 1.0, 1.0)))
    assert times.bookkeeping == 4.0
    assert times.share == pytest.approx(0.03)
