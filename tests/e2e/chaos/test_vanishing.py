"""Clients that vanish, a quarter of them with an Idempotency-Key."""

from collections.abc import Iterator

import pytest

from serve_app.core.diffusion.spec import Stage
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.processes import resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, by_kind, judge, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

CLIENTS, KEYED = 200, 50


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service whose steps take a third of SDXL's time."""
    folder = tmp_path_factory.mktemp("service")
    with own_service(ray_of_its_own, folder, seconds_scale=0.3) as service:
        yield service


def test_vanished_clients_leave_nothing_behind_and_keyed_images_are_made(
    service: ChaosService,
) -> None:
    service.wait_idle()
    ingress = service.processes.ingress()
    before, memory = finished(service), resident(ingress)
    calls = [
        Call(
            image_body(1000 + n, steps=10),
            at=n / 20,
            key=f"gone-{n}" if n % (CLIENTS // KEYED) == 0 else None,
            leaves_after=0.1 + 0.4 * (n % 7) / 7,
        )
        for n in range(CLIENTS)
    ]
    with Load(service.address) as load:
        load.send(calls)
        answers = load.answers()
    vanished = by_kind(answers, Kind.LEFT)
    service.wait_idle(120)
    made = finished(service) - before
    with Load(service.address) as load:
        load.send(Call(call.body, key=call.key) for call in calls if call.key)
        again = load.answers()
    later = finished(service) - before - made  # of clients that left before they were heard
    report(
        f"{CLIENTS} clients vanish, {KEYED} of them with an Idempotency-Key",
        f"{len(vanished)} left, {made} images made; all {KEYED} keyed asked again: "
        f"{tally(again)}, {later} made only then; ingress {memory:.0f} to "
        f"{resident(ingress):.0f} MiB",
        "the keyed are made and kept, the others cost nothing",
    )
    assert {judge(answer).kind for answer in again} == {Kind.MADE}
    in_time = len(answers) - len(vanished)
    assert KEYED <= made + later <= KEYED + in_time + 4  # four may have been in their last step


def finished(service: ChaosService) -> int:
    """Return the images that the refiner's replicas have finished."""
    return sum(stats.engine.finished for stats in service.stats(Stage.REFINER))
