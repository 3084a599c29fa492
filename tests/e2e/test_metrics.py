"""What Prometheus scrapes from Ray's metrics agent while the service runs."""

import re
import time
from collections import defaultdict

import httpx
import pytest
import ray

from tests.support.service import APP, STAGES, Service
from tests.support.waiting import until

pytestmark = pytest.mark.ray

SAMPLE = re.compile(r"^ray_(aura_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
BODY = {"prompt": "a red fox", "seed": 3, "steps": 10, "imageCount": 1, "guidanceScale": 5}
OWN_LABELS = ("outcome", "model", "stage", "route", "method", "code", "status", "reason")
REPORT_SECONDS = 3.0  # in which everything recorded has surely been reported
Numbers = dict[tuple[str, str], float]  # by `name{deployment labels}` and replica


def numbers() -> Numbers:
    """Return every number of ours that Prometheus sees."""
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    found: Numbers = defaultdict(float)
    for name, text, value in SAMPLE.findall(httpx.get(address, timeout=10).text):
        labels = dict(LABEL.findall(text))
        if labels["application"] != APP or name.endswith(("_bucket", "_sum")):
            continue
        own = [labels[label] for label in OWN_LABELS if label in labels]
        key = f"{name}{{{' '.join([labels['deployment'], *own])}}}", labels["replica"]
        found[key] += float(value)
    return found


def settled() -> Numbers:
    """Return the numbers once everything that other tests did has been reported."""
    previous = numbers()
    while True:
        time.sleep(REPORT_SECONDS)  # nothing else tells that no report is on its way
        current = numbers()
        if current == previous:
            return current
        previous = current


def test_prometheus_sees_two_requests_and_an_error(service: Service) -> None:
    previous = settled()
    turns = {stage: sum(stats.engine.turns for stats in service.stats(stage)) for stage in STAGES}
    for _ in range(2):
        assert service.post("/generate", **BODY).status_code == 201
    assert service.post("/generate", prompt="").status_code == 400
    turns = {
        stage: sum(stats.engine.turns for stats in service.stats(stage)) - turns[stage]
        for stage in STAGES
    }
    assert turns == {"base": 16, "refiner": 4}  # two images of ten steps, one after the other
    expected: dict[str, float] = {
        "aura_http_request_duration_seconds_count{Ingress /generate POST 201}": 2,
        "aura_http_request_duration_seconds_count{Ingress /generate POST 400}": 1,
        "aura_http_errors_total{Ingress VALIDATION_ERROR 400}": 1,
        "aura_images_total{Ingress made demo}": 2,
        "aura_image_duration_seconds_count{Ingress demo}": 2,
        "aura_images_completed_total{Ingress}": 2,
        "aura_images_on_time_total{Ingress}": 2,
    }
    for stage, deployment in STAGES.items():
        expected |= {
            f"aura_stage_duration_seconds_count{{Ingress {stage}}}": 2,
            f"aura_queue_time_seconds_count{{{deployment} {stage}}}": 2,
            f"aura_step_duration_seconds_count{{{deployment} {stage}}}": turns[stage],
            f"aura_step_rows_total{{{deployment} {stage}}}": 2 * turns[stage],
        }

    def growth() -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for key, value in numbers().items():  # those of a replica that died may be missing
            sums[key[0]] += value - previous.get(key, 0.0)
        return {key: sums[key] for key in expected}

    until(lambda: growth() == expected, 30)
    gauges = {
        key[0]: value
        for key, value in numbers().items()
        if key[0].startswith(("aura_owed_seconds", "aura_images_running", "aura_images_waiting"))
    }
    assert set(gauges.values()) == {0}
    names = {key.partition("{")[0] for key in gauges}
    assert names == {"aura_owed_seconds", "aura_images_running", "aura_images_waiting"}

    def versions() -> set[float]:
        return {v for key, v in numbers().items() if key[0].startswith("aura_build_info")}

    assert until(versions) == {1}
