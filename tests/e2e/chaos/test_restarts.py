"""Serve's own processes are killed, and everything is deployed anew, under load."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.chaos import ray_calls
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load, steady
from tests.e2e.chaos.measure import together
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service whose steps take a third of SDXL's time."""
    folder = tmp_path_factory.mktemp("service")
    with own_service(ray_of_its_own, folder, seconds_scale=0.3) as service:
        yield service


def test_a_killed_proxy_refuses_connections_for_a_while_and_loses_no_keyed_image(
    service: ChaosService,
) -> None:
    bodies = [image_body(100 + n) for n in range(40)]
    calls = [Call(call.body, call.at, key=f"proxy-{n}") for n, call in enumerate(steady(bodies, 1))]
    with Probe(service.address, "/livez") as probe, Load(service.address) as load:
        load.send(calls)
        time.sleep(3)
        kill(service.processes.proxy())
        answers = load.answers()
    with Load(service.address) as load:
        load.send(Call(call.body, key=call.key) for call in calls)
        again = load.answers()
    report(
        "kill -9 of Serve's proxy, a keyed newcomer each second for 40 s",
        f"{tally(answers)}; no answer for {probe.longest_silence:.1f} s; all asked again: "
        f"{tally(again)}",
        "every keyed image is there for whoever asks again",
    )
    assert {judge(answer).kind for answer in again} == {Kind.MADE}


def test_a_killed_controller_and_ledger_cost_no_image(service: ChaosService) -> None:
    with Load(service.address) as load:
        load.send(steady([image_body(300 + n) for n in range(40)], rate=4))
        kill(service.processes.controller())
        time.sleep(2)
        kill(service.processes.ledger())
        answers = load.answers()
    report(
        "kill -9 of Serve's controller, then of the ledger, four newcomers a second",
        f"{tally(answers)}, slowest {max(answer.seconds for answer in answers):.1f} s",
        "all made",
    )
    assert {judge(answer).kind for answer in answers} == {Kind.MADE}
    service.wait_whole()


def test_a_redeploy_under_load_costs_no_image(service: ChaosService) -> None:
    calm = max(a.seconds for a in together(service, [image_body(400 + n) for n in range(8)]))
    with Load(service.address) as load:
        load.send(steady([image_body(410 + n) for n in range(80)], rate=2))
        time.sleep(2)
        changed = service.args.model_copy(update={"images": 2})
        service.call(ray_calls.deploy, service.app, "/", changed)
        answers = load.answers()
    service.call(ray_calls.deploy, service.app, "/", service.args)
    service.wait_whole()
    report(
        "a redeploy of every deployment under load, two newcomers a second",
        f"{tally(answers)}, slowest {max(answer.seconds for answer in answers):.1f} s "
        f"(undisturbed {calm:.1f} s)",
        "all made, or refused by name",
    )
    assert {judge(answer).kind for answer in answers} <= {Kind.MADE, Kind.ERROR}
