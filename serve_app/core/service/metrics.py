"""What is counted of the service's work, by name; and whoever counts, as a contract.

Knows no Prometheus, no Ray and no clock: seconds are measured elsewhere. Names are Prometheus' way:
seconds, `_total` for what only grows. A label has few values: never a prompt, an id or a caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

_MOMENTS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STEPS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)


class MetricKind(StrEnum):
    """How what is recorded adds up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class ImageOutcome(StrEnum):
    """What became of an image that was asked for."""

    MADE = "made"
    CANCELLED = "cancelled"  # by its caller, or since another one of its request ended badly
    REFUSED = "refused"  # for lack of room or time, or by the request's own fault
    LATE = "late"
    FAILED = "failed"


class ResumeReason(StrEnum):
    """Why an image went on elsewhere, or began again."""

    LOST = "replica_lost"
    PROFILE = "profile_changed"


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that is counted. `bounds` are a histogram's buckets, by their upper ends."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def values(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The labels' values, in the metric's order. Raises `ValueError` for other labels."""
        if set(labels) != set(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        return tuple(str(labels[name]) for name in self.labels)


def _counter(name: str, about: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, about, labels)


def _histogram(name: str, about: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, about, labels, bounds)


IMAGES = _counter("aura_images_total", "Images asked for, by what became of them", "outcome")
IMAGE_SECONDS = _histogram(
    "aura_image_seconds", "From an image's admission to its PNG, of images made", _MOMENTS
)
ACCEPTED = _counter(
    "aura_slo_total", "Images accepted and ended, but for those that their caller gave up"
)
IN_TIME = _counter("aura_slo_met_total", "Of aura_slo_total, those made within their deadline")
STAGE_SECONDS = _histogram(
    "aura_stage_seconds",
    "From an image's leaving for a stage to its return, on as many replicas as it took",
    _MOMENTS,
    "stage",
)
QUEUE_SECONDS = _histogram(
    "aura_queue_seconds", "From a replica's taking an image to its first step", _MOMENTS, "stage"
)
RESUMES = _counter(
    "aura_resumes_total", "Images that went on elsewhere, or began again, and why", "reason"
)
REFUSALS = _counter("aura_refusals_total", "Requests answered with an error, by its code", "code")
CANCELS = _counter("aura_cancels_total", "Images dropped by a replica since nobody waited any more")
BUSY_SECONDS = _counter("aura_busy_gpu_seconds_total", "GPU time of all turns of a replica")
WASTED_SECONDS = _counter(
    "aura_wasted_gpu_seconds_total", "Of it, what images had taken that were cancelled or failed"
)
OWED_SECONDS = Metric(
    "aura_owed_seconds", MetricKind.GAUGE, "Predicted seconds of what a replica has taken"
)
STEP_SECONDS = _histogram("aura_step_seconds", "A step of a batch: one UNet call", _STEPS, "stage")
STEP_ROWS = _counter("aura_step_rows_total", "UNet rows of samples, over all steps", "stage")
STEP_LANES = _counter("aura_step_lanes_total", "UNet rows with padding, over all steps", "stage")

METRICS = (
    *(IMAGES, IMAGE_SECONDS, ACCEPTED, IN_TIME, STAGE_SECONDS, QUEUE_SECONDS, RESUMES, REFUSALS),
    *(CANCELS, BUSY_SECONDS, WASTED_SECONDS, OWED_SECONDS, STEP_SECONDS, STEP_ROWS, STEP_LANES),
)


class Meter(Protocol):
    """Whoever counts. It costs microseconds and never waits."""

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """A counter has grown by the value, a gauge has become it, a histogram has seen it.

        Raises `ValueError` for labels that are not the metric's.
        """


class InMemoryMeter:
    """A meter that keeps its numbers to itself: for tests, and where no Ray runs."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, ...], int] = {}
        self._values: dict[tuple[str, ...], float] = {}

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """See `Meter`."""
        key = (metric.name, *metric.values(labels))
        self._times[key] = self._times.get(key, 0) + 1
        before = 0.0 if metric.kind is MetricKind.GAUGE else self._values.get(key, 0.0)
        self._values[key] = before + value

    def times(self, metric: Metric, **labels: str) -> int:
        """How often something was recorded."""
        return self._times.get((metric.name, *metric.values(labels)), 0)

    def value(self, metric: Metric, **labels: str) -> float:
        """A gauge as it is now; of the others, the sum of what was recorded."""
        return self._values.get((metric.name, *metric.values(labels)), 0.0)
