"""What a second ingress costs: memory, and the time until it takes requests."""

import time
from pathlib import Path

import pytest

from serve_app.bench.body_memory import Resident
from tests.e2e.chaos import ray_calls
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.measure import together
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import OwnRay, own_service
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

IMAGES = 24  # requests for each measurement, so that both ingresses have served some


def test_a_second_ingress_costs_no_more_than_the_first(
    ray_of_its_own: OwnRay, tmp_path: Path
) -> None:
    bodies = [image_body(number) for number in range(IMAGES)]
    with own_service(ray_of_its_own, tmp_path, seconds_scale=0.1) as service:
        together(service, bodies)
        first = Resident.of(service.processes.ingress())
        began = time.monotonic()
        two = service.args.model_copy(update={"ingress": 2})
        service.call(ray_calls.deploy, service.app, "/", two)
        until(lambda: len(service.processes.replicas("Ingress")) == 2)
        seconds = time.monotonic() - began
        process = service.processes.replicas("Ingress")[1]
        worked = sum(process.cpu_times()[:2])
        together(service, bodies)
        second = Resident.of(process)
    report(
        "a second ingress",
        f"takes requests after {seconds:.1f} s, {worked:.1f} s of them on a core; resident "
        f"{second.all:.0f} MiB, of which its own {second.own:.0f} (the first: {first.all:.0f}, "
        f"{first.own:.0f})",
        "as much as the first at most",
    )
    assert second.own <= 1.2 * first.own
