"""`RayMeter`: Ray's metrics as a meter.

What a replica records is read at the metrics agent of its node. Ray adds who recorded it
(`deployment`, `replica`, `application`), puts `ray_` before every name, and sends new values every
ten seconds.
"""

from collections.abc import Callable
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.core.service.metrics import Metric, MetricKind

Record = Callable[[float, dict[str, str]], None]


class RayMeter:
    """The meter of one replica, which must be made in it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """See `Meter`. Adding 0 to a counter is skipped: Ray refuses it."""
        values = metric.values(labels)
        if value > 0 or metric.kind is not MetricKind.COUNTER:
            record = self._records.get(metric.name) or self._open(metric)
            record(value, dict(zip(metric.labels, values, strict=True)))

    def _open(self, metric: Metric) -> Record:
        options: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
        record: Record
        if metric.kind is MetricKind.COUNTER:
            record = Counter(metric.name, **options).inc
        elif metric.kind is MetricKind.GAUGE:
            record = Gauge(metric.name, **options).set
        else:
            record = Histogram(metric.name, boundaries=list(metric.buckets), **options).observe
        self._records[metric.name] = record
        return record
