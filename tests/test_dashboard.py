"""The Grafana dashboard: its queries name exported metrics, and every metric is shown."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from serve_app.core.service.metrics import METRICS, MetricKind

ROOT = Path(__file__).parent.parent
FILE = ROOT / "monitoring" / "grafana" / "dashboards" / "aura-serve.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: list[tuple[str, str]] = [
    (target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]
]
EXPORTED = {  # as Prometheus sees it behind Ray; without `_sum`: see below
    f"ray_{metric.name}{suffix}": metric
    for metric in METRICS
    for suffix in (("_bucket", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",))
}
OF_RAY = {"deployment", "replica", "application"}
NAME = re.compile(r"\bray_\w+")


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_a_query_names_exported_metrics_and_their_labels(query: str, legend: str) -> None:
    """No query may use a `_sum`: Ray sums the middles of the buckets, not the values."""
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


def test_every_exported_metric_is_shown() -> None:
    shown = {EXPORTED[name] for query, _ in QUERIES for name in NAME.findall(query)}
    assert shown == set(METRICS)


def test_every_panel_has_a_unit_and_the_datasource_of_the_variable() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["query"]) == ("datasource", "prometheus")
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in ("s", "percentunit", "short")
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(len(target["legendFormat"]) <= 30 for target in panel["targets"])


def test_no_two_panels_overlap() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "GPU", "Errors and losses"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart_x or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
