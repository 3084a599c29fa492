"""Ray's metrics as a meter: what is recorded in a replica is read at its node's metrics agent.

Knows no replica and no request. Ray adds who recorded it (`deployment`, `replica`, `application`),
puts `ray_` before every name, and sends what was recorded on its way every ten seconds.
"""

from collections.abc import Callable
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.core.service.metrics import Metric, MetricKind

Note = Callable[[float, dict[str, str]], None]


class RayMeter:
    """A meter for one replica, made in it."""

    def __init__(self) -> None:
        self._notes: dict[str, Note] = {}

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """See `Meter`. A counter that has not grown is left alone: Ray refuses to add nothing."""
        values = metric.values(labels)
        if value > 0 or metric.kind is not MetricKind.COUNTER:
            note = self._notes.get(metric.name) or self._begin(metric)
            note(value, dict(zip(metric.labels, values, strict=True)))

    def _begin(self, metric: Metric) -> Note:
        told: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
        if metric.kind is MetricKind.COUNTER:
            note: Note = Counter(metric.name, **told).inc
        elif metric.kind is MetricKind.GAUGE:
            note = Gauge(metric.name, **told).set
        else:
            note = Histogram(metric.name, boundaries=list(metric.buckets), **told).observe
        self._notes[metric.name] = note
        return note
