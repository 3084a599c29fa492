"""The fit of a slope: it finds a leak under noise, and says how small a one it can see."""

import random

import pytest

from tests.e2e.chaos.memory_fit import fit


def memory(leak: float, noise: float, minutes: int = 15) -> list[tuple[float, float]]:
    """Return a size each second, with a leak in MiB per hour and noise in MiB."""
    chance = random.Random(0)
    return [
        (float(second), 200 + leak * second / 3600 + noise * chance.gauss(0, 1))
        for second in range(60 * minutes)
    ]


def test_a_line_is_found_exactly() -> None:
    slope = fit(memory(leak=30, noise=0))
    assert slope.mib_per_hour == pytest.approx(30)
    assert slope.error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("leak", [0, 20])
def test_a_leak_is_found_within_the_stated_error(leak: float) -> None:
    slope = fit(memory(leak, noise=5))
    assert abs(slope.mib_per_hour - leak) <= slope.error < 15


def test_more_noise_hides_larger_leaks() -> None:
    assert fit(memory(0, noise=9)).error > fit(memory(0, noise=3)).error


def test_too_short_a_run_has_no_slope() -> None:
    with pytest.raises(ValueError, match="2 blocks"):
        fit(memory(0, 1, minutes=1))
