import random
from statistics import fmean, median

import pytest

from serve_app.bench.intervals import bootstrap_interval, share_interval


def test_wilson_s_interval_equals_the_textbook() -> None:
    assert share_interval([True] * 100) == pytest.approx((0.9630, 1.0), abs=1e-4)


def test_an_interval_contains_the_truth_nineteen_times_in_twenty() -> None:
    rng, hits = random.Random(0), 0
    for _ in range(100):
        low, high = bootstrap_interval([rng.gauss(3, 1) for _ in range(40)])
        hits += low <= 3 <= high
    assert 88 <= hits <= 100


def test_correlated_values_make_it_wider() -> None:
    rng = random.Random(1)
    levels = [rng.gauss(0, 1) for _ in range(20)]
    values = [level + rng.gauss(0, 0.1) for level in levels for _ in range(10)]
    groups = [number for number in range(20) for _ in range(10)]
    plain, grouped = bootstrap_interval(values), bootstrap_interval(values, groups)
    assert grouped[1] - grouped[0] > 2 * (plain[1] - plain[0])


def test_other_statistics_than_the_mean() -> None:
    values = [1.0] * 9 + [100.0]
    assert bootstrap_interval(values, statistic=median) == (1.0, 1.0)
    low, high = bootstrap_interval(values)
    assert low < fmean(values) < high
