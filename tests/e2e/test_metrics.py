"""What Prometheus reads of the running service at Ray's metrics agent."""

import re
import time
from collections import Counter

import httpx
import pytest
import ray

from tests.e2e.conftest import APP, STAGES, Service, until

pytestmark = pytest.mark.ray

SAMPLE = re.compile(r"^ray_(aura_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
ASKED = {"prompt": "a red fox", "seed": 3, "steps": 10, "imageCount": 1, "guidanceScale": 5}


_REPORTS = 3.0  # seconds in which what was counted has surely been reported
Numbers = Counter[tuple[str, str]]


def numbers() -> Numbers:
    """Every number of ours: `name{deployment label}`, and the replica."""
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    found: Numbers = Counter()
    for name, labels, value in SAMPLE.findall(httpx.get(address, timeout=10).text):
        told = dict(LABEL.findall(labels))
        if told["application"] != APP or name.endswith(("_bucket", "_sum")):
            continue
        own = [told[key] for key in ("outcome", "stage", "code", "reason") if key in told]
        key = f"{name}{{{' '.join([told['deployment'], *own])}}}", told["replica"]
        found[key] += float(value)  # type: ignore[assignment]  # a Counter of floats
    return found


def settled() -> Numbers:
    """The numbers when what other tests did has arrived."""
    last = numbers()
    while True:
        time.sleep(_REPORTS)
        now = numbers()
        if now == last:
            return now
        last = now


def test_prometheus_reads_what_two_requests_and_a_refusal_came_to(service: Service) -> None:
    before = settled()
    turns = {stage: sum(f.turns for f in service.facts(stage)) for stage in STAGES}
    for _ in range(2):
        assert service.post("/generate", **ASKED).status_code == 201
    assert service.post("/generate", prompt="").status_code == 400
    turns = {s: sum(f.turns for f in service.facts(s)) - turns[s] for s in STAGES}
    assert turns == {"base": 16, "refiner": 4}  # two images of ten steps, one after the other
    wanted = {
        "aura_images_total{Ingress made}": 2,
        "aura_image_seconds_count{Ingress}": 2,
        "aura_slo_total{Ingress}": 2,
        "aura_slo_met_total{Ingress}": 2,
        "aura_refusals_total{Ingress VALIDATION_ERROR}": 1,
    }
    for stage, deployment in STAGES.items():
        wanted |= {
            f"aura_stage_seconds_count{{Ingress {stage}}}": 2,
            f"aura_queue_seconds_count{{{deployment} {stage}}}": 2,
            f"aura_step_seconds_count{{{deployment} {stage}}}": turns[stage],
            f"aura_step_rows_total{{{deployment} {stage}}}": 2 * turns[stage],
            f"aura_step_lanes_total{{{deployment} {stage}}}": 8 * turns[stage],
        }

    def grown() -> dict[str, float]:
        more = Counter[str]()
        for key, value in numbers().items():  # those of a replica that died may go meanwhile
            more[key[0]] += value - before[key]
        return {key: more[key] for key in wanted}

    until(lambda: grown() == wanted, 20)
    owed = {key[0]: value for key, value in numbers().items() if "aura_owed_seconds" in key[0]}
    assert owed == {"aura_owed_seconds{BaseGenerator}": 0, "aura_owed_seconds{Refiner}": 0}
