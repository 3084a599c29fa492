import random
from statistics import fmean, median

import pytest

from serve_app.bench.intervals import bootstrap_interval, share_interval


def test_wilson_s_interval_is_the_textbook_s() -> None:
    low, high = share_interval([True] * 100)
    assert (low, high) == (pytest.approx(0.9630, abs=1e-4), 1.0)


def test_an_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    draw, held = random.Random(0), 0
    for _ in range(100):
        low, high = bootstrap_interval([draw.gauss(3, 1) for _ in range(40)])
        held += low <= 3 <= high
    assert 88 <= held <= 100


def test_values_that_hang_together_make_it_wider() -> None:
    draw = random.Random(1)
    levels = [draw.gauss(0, 1) for _ in range(20)]
    values = [level + draw.gauss(0, 0.1) for level in levels for _ in range(10)]
    groups = [number for number in range(20) for _ in range(10)]
    alone, together = bootstrap_interval(values), bootstrap_interval(values, groups)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_other_statistics_than_the_mean() -> None:
    values = [1.0] * 9 + [100.0]
    assert bootstrap_interval(values, statistic=median) == (1.0, 1.0)
    low, high = bootstrap_interval(values)
    assert low < fmean(values) < high
