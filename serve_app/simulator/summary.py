"""What a run came to: goodput, SLO attainment, percentiles, GPU-hours.

Knows no policies. An image is in time (its SLO) when it took at most so many times the seconds that
it takes with nobody else there, and a few on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.simulator.cluster import SimulationResult

SLO = 4.0  # times alone
GRACE = 5.0  # seconds on top: nobody waits less for a draft


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers."""

    images: int
    goodput: float  # images in time, a second
    ideal: float  # images asked for, a second: all in time
    attained: float  # the share of images in time
    p50: float  # seconds
    p95: float
    p99: float
    per_step: float  # 95th percentile of latency per step asked for, seconds
    gpu_hours: float
    occupancy: float  # steps of images, of the places in batches paid for


def summarize(run: SimulationResult, seconds: float) -> Summary:
    """The outcome of a trace of so many seconds."""
    in_time = sum(one.seconds <= SLO * one.isolated_seconds + GRACE for one in run.finished)
    latencies = sorted(one.seconds for one in run.finished)
    per_step = sorted(one.seconds / one.arrival.steps for one in run.finished)
    return Summary(
        images=len(run.finished),
        goodput=in_time / seconds,
        ideal=len(run.finished) / seconds,
        attained=in_time / max(1, len(run.finished)),
        p50=percentile(latencies, 0.50),
        p95=percentile(latencies, 0.95),
        p99=percentile(latencies, 0.99),
        per_step=percentile(per_step, 0.95),
        gpu_hours=run.gpu_seconds / 3600,
        occupancy=run.occupancy,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share is not above; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
