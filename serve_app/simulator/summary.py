"""The numbers of a run: goodput, SLO attainment, latency percentiles, GPU-hours.

An image meets its SLO (it is "in time") if it took at most `SLO` times its isolated latency plus
`GRACE` seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.simulator.result import SimulationResult

SLO = 4.0  # times the isolated latency
GRACE = 5.0  # seconds on top, for drafts: their isolated latency is short


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers; latencies are in seconds."""

    images: int
    goodput: float  # images in time, per second
    ideal: float  # requested images per second: the goodput if all were in time
    attained: float  # the share of images in time
    p50: float
    p95: float
    p99: float
    per_step: float  # 95th percentile of the latency divided by the requested steps
    gpu_hours: float
    occupancy: float  # UNet rows of images, as a share of those of full batches


def summarize(run: SimulationResult, seconds: float) -> Summary:
    """Return the numbers of a run whose trace is `seconds` long."""
    in_time = sum(image.seconds <= SLO * image.isolated_seconds + GRACE for image in run.finished)
    latencies = sorted(image.seconds for image in run.finished)
    per_step = sorted(image.seconds / image.arrival.steps for image in run.finished)
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
    """Return the value below which a share of the ordered values lies; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
