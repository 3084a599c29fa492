"""The slope of resident memory over time, and the smallest leak that a fit of it can see."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

_BLOCK = 30.0  # seconds whose mean is one point: neighbours within it are not independent
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares line through resident memory."""

    mib_per_hour: float
    error: float  # twice the standard error, in MiB per hour: a smaller leak can't be seen

    def __str__(self) -> str:
        """Return both numbers."""
        return f"{self.mib_per_hour:+.1f} +- {self.error:.1f} MiB/h"


def fit(points: Sequence[tuple[float, float]]) -> Slope:
    """Return the slope of points of seconds and MiB, from the means of blocks of 30 s.

    Raises `ValueError` for fewer than three blocks.
    """
    start = points[0][0]
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at, size in points:
        blocks.setdefault(int((at - start) / _BLOCK), []).append((at, size))
    times = [fmean(at for at, _ in block) / _HOUR for block in blocks.values()]
    sizes = [fmean(size for _, size in block) for block in blocks.values()]
    if len(times) < 3:
        raise ValueError(f"{len(times)} blocks of {_BLOCK:.0f} s are too few for a line")
    middle, mean = fmean(times), fmean(sizes)
    width = sum((at - middle) ** 2 for at in times)
    slope = (
        sum((at - middle) * (size - mean) for at, size in zip(times, sizes, strict=True)) / width
    )
    rest = sum(
        (size - mean - slope * (at - middle)) ** 2 for at, size in zip(times, sizes, strict=True)
    )
    return Slope(slope, 2 * (rest / (len(times) - 2) / width) ** 0.5)
