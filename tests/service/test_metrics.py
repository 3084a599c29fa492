"""What Prometheus reads of the running service at Ray's metrics agent."""

import re
from collections import Counter

import httpx
import pytest
import ray

from tests.service.conftest import APP, STAGES, Service, until

pytestmark = pytest.mark.ray

SAMPLE = re.compile(r"^ray_(aura_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
ASKED = {"prompt": "a red fox", "seed": 3, "steps": 10, "imageCount": 1, "guidanceScale": 5}


def numbers() -> Counter[str]:
    """Every number of ours, over all replicas: `name{deployment label}`."""
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    found: Counter[str] = Counter()
    for name, labels, value in SAMPLE.findall(httpx.get(address, timeout=10).text):
        told = dict(LABEL.findall(labels))
        if told["application"] != APP or name.endswith(("_bucket", "_sum")):
            continue
        assert told["replica"]
        own = [told[key] for key in ("outcome", "stage", "code", "reason") if key in told]
        found[f"{name}{{{' '.join([told['deployment'], *own])}}}"] += float(value)  # type: ignore[assignment]
    return found


def test_prometheus_reads_what_two_requests_and_a_refusal_came_to(service: Service) -> None:
    before = numbers()
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
        after = numbers()
        return {key: after[key] - before[key] for key in wanted}

    until(lambda: grown() == wanted, 20)
    owed = {key: value for key, value in numbers().items() if key.startswith("aura_owed_seconds")}
    assert owed == {"aura_owed_seconds{BaseGenerator}": 0, "aura_owed_seconds{Refiner}": 0}
