"""One of two ingresses that is stopped: newcomers go to the other one."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.processes import stopped
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge, quantile, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

WITHIN = 10.0  # seconds after which newcomers notice nothing any more
STOPPED = 60.0  # seconds
RATE = 4.0  # images a second


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a fast service with two ingresses."""
    folder = tmp_path_factory.mktemp("two-ingresses")
    with own_service(ray_of_its_own, folder, seconds_scale=0.1, ingress=2) as service:
        yield service


def test_newcomers_go_to_the_other_ingress_while_one_is_stopped(service: ChaosService) -> None:
    calls = [
        Call(image_body(n), at=n / RATE, key=f"stopped-{n}" if n % 2 else None)
        for n in range(int(RATE * (STOPPED - 5)))
    ]
    with Load(service.address) as load:
        load.send([Call(image_body(n)) for n in range(16)])
        load.answers()
    with Load(service.address) as load, Probe(service.address) as probe:
        began = time.monotonic()
        with stopped(service.processes.ingress()):
            load.send(calls)
            time.sleep(STOPPED)
        answers = load.answers(120)
    early = [answer for answer in answers if answer.sent - began < WITHIN]
    late = [answer for answer in answers if answer.sent - began >= WITHIN]
    slowest = max(answer.seconds for answer in late)
    report(
        f"SIGSTOP of one of two ingresses for {STOPPED:.0f} s, {RATE:.0f} images a second",
        f"sent in the first {WITHIN:.0f} s: {tally(early)}, p95 "
        f"{quantile([answer.seconds for answer in early], 0.95):.1f} s; later: {tally(late)}, the "
        f"slowest {slowest:.1f} s; /health silent for {probe.longest_silence:.1f} s at most",
        f"newcomers go to the other one within {WITHIN:.0f} s",
    )
    assert {judge(answer).kind for answer in answers} == {Kind.MADE}
    assert slowest < 5
    assert max(answer.seconds for answer in early) < STOPPED / 2  # none waited for the stopped one
    assert probe.longest_silence < 5
    service.wait_whole()
