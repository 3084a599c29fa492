"""95 % confidence intervals of shares, means and medians.

Values of one group are correlated, so the bootstrap resamples whole groups.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from statistics import fmean

_Z = 1.959964  # standard deviations that contain 95 %
_RESAMPLES = 2000

Interval = tuple[float, float]
Statistic = Callable[[Sequence[float]], float]


def share_interval(successes: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Interval:
    """Return Wilson's interval (1927) of the share of successes.

    It is widened to the bootstrap's, which respects groups, where that reaches further.
    """
    n, share = len(successes), fmean(successes)
    spread = _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half_width = _Z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low, high = bootstrap_interval([float(success) for success in successes], groups)
    return max(0.0, min(low, centre - half_width)), min(1.0, max(high, centre + half_width))


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    statistic: Statistic = fmean,
) -> Interval:
    """Return the percentile bootstrap interval of a statistic (Efron 1979), with a fixed seed."""
    by_group: dict[Hashable, list[float]] = {}
    for group, value in zip(groups or range(len(values)), values, strict=True):
        by_group.setdefault(group, []).append(value)
    clusters, draw = list(by_group.values()), random.Random(0)
    estimates = sorted(
        statistic([v for cluster in draw.choices(clusters, k=len(clusters)) for v in cluster])
        for _ in range(_RESAMPLES)
    )
    return estimates[int(0.025 * _RESAMPLES)], estimates[int(0.975 * _RESAMPLES)]
