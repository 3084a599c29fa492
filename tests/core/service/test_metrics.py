import re

import pytest

from serve_app.core.service.metrics import (
    IMAGES,
    METRICS,
    OWED_SECONDS,
    STEP_SECONDS,
    Kind,
    Metric,
    Outcome,
    Tally,
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"aura_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.kind is Kind.COUNTER or metric.name.endswith("_seconds")
    assert not set(metric.labels) & {"id", "prompt", "seed", "caller", "model", "key"}
    assert metric.about
    assert not metric.about.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_histograms_alone_have_buckets_which_rise(metric: Metric) -> None:
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.bounds) == sorted(set(metric.bounds))


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_tally_adds_counters_and_observations_and_keeps_the_last_of_a_gauge() -> None:
    tally = Tally()
    assert (tally.times(OWED_SECONDS), tally.value(OWED_SECONDS)) == (0, 0)
    tally.record(IMAGES, outcome=Outcome.MADE)
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
        Tally().record(IMAGES, 1, **labels)
