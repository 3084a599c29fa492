"""The Grafana dashboard: every query asks for what the service exports, and all of it is shown."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from serve_app.core.service.metrics import METRICS, MetricKind

FILE = Path(__file__).parent.parent / "configs" / "grafana-dashboard.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
QUERIES: list[tuple[str, str]] = [
    (target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]
]
EXPORTED = {  # what Prometheus sees, as Ray writes it; `_sum` is left out: see below
    f"ray_{metric.name}{suffix}": metric
    for metric in METRICS
    for suffix in (("_bucket", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",))
}
OF_RAY = {"deployment", "replica", "application"}
NAME = re.compile(r"\bray_\w+")


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_a_query_names_what_is_exported_and_its_labels(query: str, legend: str) -> None:
    """No query may take a `_sum`: Ray adds up the middles of the buckets, not the values."""
    names = NAME.findall(query)
    assert names
    assert query.count("(") == query.count(")")
    metrics = [EXPORTED[name] for name in names]
    grouped = [set(group.split(", ")) for group in re.findall(r"\bby \((.*?)\)", query)]
    for metric in metrics:
        allowed = {*metric.labels, *OF_RAY} | ({"le"} if metric.buckets else set())
        assert all(group <= allowed for group in grouped), metric.name
        assert (metric.kind is MetricKind.GAUGE) == (
            "rate(" not in query and "increase(" not in query
        )
    assert "{" not in query
    shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert all(group - {"le"} == shown for group in grouped)
    assert ("histogram_quantile" in query) == all(name.endswith("_bucket") for name in names)


def test_everything_that_is_exported_is_shown() -> None:
    named = {EXPORTED[name] for query, _ in QUERIES for name in NAME.findall(query)}
    assert named == set(METRICS)


def test_every_panel_has_a_unit_and_the_one_datasource_that_is_chosen_above() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["query"]) == ("datasource", "prometheus")
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in ("s", "percentunit", "short")
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(len(target["legendFormat"]) <= 30 for target in panel["targets"])


def test_panels_stand_side_by_side_in_their_rows() -> None:
    rows = [one["title"] for one in DASHBOARD["panels"] if one["type"] == "row"]
    assert rows == ["Traffic and SLO", "Latency", "GPU", "Losses"]
    ids = [one["id"] for one in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [one["gridPos"] for one in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart_x or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
