"""An application that Serve deletes, as `serve shutdown` does, with images that take too long."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.chaos import ray_calls
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 150  # about 22 s
DRAIN = 10.0  # seconds that Serve waits before it ends the processes


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service with a spool whose steps take as long as SDXL's."""
    folder = tmp_path_factory.mktemp("retired")
    with own_service(
        ray_of_its_own, folder, drain_seconds=DRAIN, spool=folder / "spool"
    ) as service:
        yield service


def test_keyed_images_go_on_in_the_next_application_from_where_serve_ended_them(
    service: ChaosService,
) -> None:
    calls = [Call(image_body(n, steps=STEPS), key=f"retired-{n}") for n in range(4)]
    spool = service.args.spool
    assert spool is not None
    with Load(service.address) as load:
        load.send(calls)
        until(lambda: len(service.in_flight()) == 4 and min(service.in_flight().values()) > 10)
        began = time.monotonic()
        service.call(ray_calls.delete, service.app)
        ended = time.monotonic() - began
        lost = load.answers()
    kept = len(list(spool.glob("*.safetensors")))
    service.call(ray_calls.deploy, service.app, "/", service.args)
    service.wait_whole()
    with Load(service.address) as load:
        load.send(calls)
        again = load.answers()
    saved = 4 * STEPS - service.steps()
    until(lambda: not list(spool.glob("*.safetensors")))
    report(
        f"serve.delete, 4 keyed images of {STEPS} steps under way, {DRAIN:.0f} s allowed",
        f"{tally(lost)}, ended after {ended:.1f} s, {kept} in the spool; asked again of the next "
        f"application: {tally(again)}, {saved} of {4 * STEPS} steps saved",
        "continued for whoever asks again",
    )
    assert kept == 4
    assert {judge(answer).kind for answer in again} == {Kind.MADE}
    assert saved > 4 * 20
