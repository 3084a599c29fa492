"""How sure a figure is: 95 % intervals of shares, means and medians.

Knows nothing of what was measured. Values of one group hang together, so groups are drawn whole.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from statistics import fmean

_Z = 1.959964  # standard deviations that hold 95 %
_RESAMPLES = 2000

Interval = tuple[float, float]
Statistic = Callable[[Sequence[float]], float]


def share_interval(right: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Interval:
    """Of the share of what is right: Wilson's interval (1927), widened to the bootstrap's, which
    knows of groups, where that reaches further."""
    asked, share = len(right), fmean(right)
    spread = _Z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    reach = _Z * sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    low, high = bootstrap_interval([float(one) for one in right], groups)
    return max(0.0, min(low, middle - reach)), min(1.0, max(high, middle + reach))


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    statistic: Statistic = fmean,
) -> Interval:
    """The percentile bootstrap's interval of a statistic (Efron 1979), drawn with a fixed seed."""
    together: dict[Hashable, list[float]] = {}
    for group, value in zip(groups or range(len(values)), values, strict=True):
        together.setdefault(group, []).append(value)
    clusters, draw = list(together.values()), random.Random(0)
    found = sorted(
        statistic([v for cluster in draw.choices(clusters, k=len(clusters)) for v in cluster])
        for _ in range(_RESAMPLES)
    )
    return found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES)]
