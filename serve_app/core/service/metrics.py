"""The service's metrics by name, and `Meter`, the contract of whatever records them.

No Prometheus, no Ray and no clock: seconds are measured elsewhere. Names follow Prometheus: the
quantity, then its unit, and `_total` for counters. A label has few values: never a prompt, an id or
a caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

_IMAGE_BUCKETS = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_STEP_BUCKETS = (
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.0,
    5.0,
    10.0,
)


class MetricKind(StrEnum):
    """How recorded values add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class ImageOutcome(StrEnum):
    """How a requested image ended."""

    MADE = "made"
    CANCELLED = "cancelled"  # by the caller, or because another image of the request failed
    REFUSED = "refused"  # for lack of capacity or time, or because the request is at fault
    LATE = "late"
    FAILED = "failed"


class ResumeReason(StrEnum):
    """Why an image was continued elsewhere, or started again."""

    LOST = "replica_lost"
    PROFILE = "profile_changed"
    SILENT = "replica_silent"
    EXPIRED = "lease_expired"
    RETAKEN = "ingress_lost"


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that is measured. `buckets` are the upper bounds of a histogram's buckets."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def values(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Return the labels' values in the metric's order. Raises `ValueError` for other labels."""
        if set(labels) != set(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        return tuple(str(labels[name]) for name in self.labels)


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, help, labels, buckets)


HTTP_REQUEST_DURATION = _histogram(
    "aura_http_request_duration_seconds",
    "Duration of an HTTP request; status 499 is a client that left before the response",
    _IMAGE_BUCKETS,
    *("route", "method", "status"),
)
HTTP_ERRORS = _counter(
    "aura_http_errors_total", "HTTP requests answered with an error", "code", "status"
)
IMAGES = _counter(
    "aura_images_total", "Requested images that ended, by outcome", "outcome", "model"
)
IMAGE_DURATION = _histogram(
    "aura_image_duration_seconds",
    "Time from an image's admission to its PNG, for finished images",
    _IMAGE_BUCKETS,
    "model",
)
IMAGES_COMPLETED = _counter(
    "aura_images_completed_total", "Images that were made, late or failed: not refused or cancelled"
)
IMAGES_ON_TIME = _counter(
    "aura_images_on_time_total",
    "The part of aura_images_completed_total that finished before its deadline",
)
IMAGES_CANCELLED = _counter(
    "aura_images_cancelled_total",
    "Images dropped by a replica: the client left or deleted the job, the deadline passed, or "
    "another image of the request failed",
)
IMAGES_RESUMED = _counter(
    "aura_images_resumed_total", "Images continued elsewhere or started again", "reason"
)
IMAGES_ORPHANED = _counter(
    "aura_images_orphaned_total",
    "Images dropped by a replica because the ingress that sent them renews its lease no more",
)
IMAGES_QUARANTINED = _counter(
    "aura_images_quarantined_total",
    "Times that an image ran alone for some steps, because a replica was lost with it",
    "stage",
)
IMAGES_CONVICTED = _counter(
    "aura_images_convicted_total",
    "Images refused because a replica died while it worked on them alone",
    "stage",
)
REPLICAS_SILENT = _counter(
    "aura_replicas_silent_total",
    "Replicas that images were taken from because no news came, or a turn did not end",
    "stage",
)
IMAGES_RUNNING = _gauge(
    "aura_images_running", "Images on a replica that have taken their first step", "stage"
)
IMAGES_WAITING = _gauge(
    "aura_images_waiting", "Images on a replica that wait for their first step", "stage"
)
NUMERIC_FAULTS = _counter(
    "aura_numeric_faults_total", "Images whose latents or pixels were NaN or infinite"
)
STAGE_DURATION = _histogram(
    "aura_stage_duration_seconds",
    "Time of an image in a stage, on as many replicas as it took",
    _IMAGE_BUCKETS,
    "stage",
)
QUEUE_TIME = _histogram(
    "aura_queue_time_seconds",
    "Time from an image's arrival at a replica to its first step",
    _IMAGE_BUCKETS,
    "stage",
)
STEP_DURATION = _histogram(
    "aura_step_duration_seconds",
    "Duration of a batch's step: one UNet call",
    _STEP_BUCKETS,
    "stage",
)
STEP_ROWS = _counter("aura_step_rows_total", "UNet rows of samples, over all steps", "stage")
STEP_LANES = _counter("aura_step_lanes_total", "UNet rows with padding, over all steps", "stage")
GPU_TIME = _counter("aura_gpu_time_seconds_total", "GPU time of all engine turns of a replica")
GPU_WASTED = _counter(
    "aura_gpu_wasted_seconds_total",
    "The part of it that cancelled, late and failed images took; an ingress adds what stages "
    "before the last one took",
)
OWED_SECONDS = _gauge(
    "aura_owed_seconds", "Backlog: predicted GPU seconds of what a replica has accepted"
)
REQUESTS_ADMITTED = _counter(
    "aura_requests_admitted_total", "Requests for images that were admitted to the queue"
)
REQUESTS_REFUSED = _counter(
    "aura_requests_refused_total",
    "Requests for images that were refused when they came: too many open requests, a full queue, "
    "a deadline that the queue or nothing at all can meet",
    "reason",
)
QUEUE_SECONDS = _gauge(
    "aura_queue_seconds",
    "Predicted seconds until everything that was admitted is done, as an ingress knows it",
)
QUEUE_LIMIT_SECONDS = _gauge(
    "aura_queue_limit_seconds", "MAX_QUEUE_SECONDS: beyond this wait requests are refused"
)
WEBHOOK_TRIES = _counter(
    "aura_webhook_tries_total",
    "Tries to deliver a webhook: delivered, failed for now, or given up",
    "outcome",
)
WEBHOOKS_WAITING = _gauge(
    "aura_webhooks_waiting", "Webhooks that are not delivered yet, at most 10000", "receiver"
)
CLOUD_CALLS = _counter(
    "aura_cloud_calls_total",
    "Calls of a cloud's model, retries included: answered, busy or failed",
    "outcome",
)
BUILD_INFO = _gauge("aura_build_info", "Always 1; the labels are the versions", "version", "torch")

METRICS = (
    *(HTTP_REQUEST_DURATION, HTTP_ERRORS),
    *(IMAGES, IMAGE_DURATION, IMAGES_COMPLETED, IMAGES_ON_TIME, IMAGES_CANCELLED, IMAGES_RESUMED),
    *(IMAGES_ORPHANED,),
    *(IMAGES_QUARANTINED, IMAGES_CONVICTED, REPLICAS_SILENT, NUMERIC_FAULTS),
    *(IMAGES_RUNNING, IMAGES_WAITING, STAGE_DURATION, QUEUE_TIME),
    *(REQUESTS_ADMITTED, REQUESTS_REFUSED, QUEUE_SECONDS, QUEUE_LIMIT_SECONDS),
    *(WEBHOOK_TRIES, WEBHOOKS_WAITING, CLOUD_CALLS),
    *(STEP_DURATION, STEP_ROWS, STEP_LANES, GPU_TIME, GPU_WASTED, OWED_SECONDS, BUILD_INFO),
)


class WebhookOutcome(StrEnum):
    """What became of a try to deliver a webhook: the label of `WEBHOOK_TRIES`."""

    DELIVERED = "delivered"
    FAILED = "failed"  # and to be tried again
    GIVEN_UP = "given_up"


class Meter(Protocol):
    """A sink of metrics. Recording takes microseconds and never waits."""

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Add the value to a counter, set a gauge to it, or observe it in a histogram.

        Raises `ValueError` for labels that are not the metric's.
        """


class InMemoryMeter:
    """A meter that keeps its numbers to itself: for tests, and where no Ray runs."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}
        self._values: dict[tuple[str, ...], float] = {}

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """See `Meter`."""
        key = (metric.name, *metric.values(labels))
        self._counts[key] = self._counts.get(key, 0) + 1
        previous = 0.0 if metric.kind is MetricKind.GAUGE else self._values.get(key, 0.0)
        self._values[key] = previous + value

    def times(self, metric: Metric, **labels: str) -> int:
        """Return how often the metric was recorded with these labels."""
        return self._counts.get((metric.name, *metric.values(labels)), 0)

    def value(self, metric: Metric, **labels: str) -> float:
        """Return a gauge's last value; of the others, the sum of what was recorded."""
        return self._values.get((metric.name, *metric.values(labels)), 0.0)
