import re

import pytest

from serve_app.core.service.metrics import (
    IMAGES,
    METRICS,
    OWED_SECONDS,
    STEP_SECONDS,
    ImageOutcome,
    InMemoryMeter,
    Metric,
    MetricKind,
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"aura_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
    assert metric.kind is MetricKind.COUNTER or metric.name.endswith("_seconds")
    assert not set(metric.labels) & {"id", "prompt", "seed", "caller", "model", "key"}
    assert metric.help
    assert not metric.help.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_histograms_alone_have_buckets_which_rise(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_tally_adds_counters_and_observations_and_keeps_the_last_of_a_gauge() -> None:
    tally = InMemoryMeter()
    assert (tally.times(OWED_SECONDS), tally.value(OWED_SECONDS)) == (0, 0)
    tally.record(IMAGES, outcome=ImageOutcome.MADE)
    tally.record(IMAGES, 2, outcome="made")
    for seconds in (0.5, 0.25):
        tally.record(STEP_SECONDS, seconds, stage="base")
        tally.record(OWED_SECONDS, seconds)
    assert tally.value(IMAGES, outcome="made") == 3
    assert tally.value(IMAGES, outcome="late") == 0
    assert (tally.times(STEP_SECONDS, stage="base"), tally.value(STEP_SECONDS, stage="base")) == (
        2,
        0.75,
    )
    assert tally.value(OWED_SECONDS) == 0.25


@pytest.mark.parametrize("labels", [{}, {"stage": "base"}, {"outcome": "made", "stage": "base"}])
def test_other_labels_than_a_metric_has_are_an_error(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="aura_images_total has the labels"):
        InMemoryMeter().record(IMAGES, 1, **labels)
