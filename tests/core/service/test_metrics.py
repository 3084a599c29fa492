import re

import pytest

from serve_app.core.service.metrics import (
    IMAGES,
    METRICS,
    OWED_SECONDS,
    STEP_DURATION,
    ImageOutcome,
    InMemoryMeter,
    Metric,
    MetricKind,
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"aura_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
    assert metric.kind is not MetricKind.HISTOGRAM or metric.name.endswith("_seconds")
    assert not set(metric.labels) & {"id", "prompt", "seed", "caller", "key"}
    assert metric.help
    assert not metric.help.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_only_histograms_have_buckets_in_rising_order(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_meter_in_memory_adds_counters_and_observations_and_keeps_a_gauge_s_last() -> None:
    meter = InMemoryMeter()
    assert (meter.times(OWED_SECONDS), meter.value(OWED_SECONDS)) == (0, 0)
    meter.record(IMAGES, outcome=ImageOutcome.MADE, model="demo")
    meter.record(IMAGES, 2, outcome="made", model="demo")
    for seconds in (0.5, 0.25):
        meter.record(STEP_DURATION, seconds, stage="base")
        meter.record(OWED_SECONDS, seconds)
    assert meter.value(IMAGES, outcome="made", model="demo") == 3
    assert meter.value(IMAGES, outcome="late", model="demo") == 0
    assert (meter.times(STEP_DURATION, stage="base"), meter.value(STEP_DURATION, stage="base")) == (
        2,
        0.75,
    )
    assert meter.value(OWED_SECONDS) == 0.25


@pytest.mark.parametrize(
    "labels", [{}, {"stage": "base"}, {"outcome": "made", "model": "demo", "stage": "base"}]
)
def test_labels_that_a_metric_does_not_have_are_an_error(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="aura_images_total has the labels"):
        InMemoryMeter().record(IMAGES, 1, **labels)
