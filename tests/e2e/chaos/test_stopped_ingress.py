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
from tests.e2e.chaos.verdict import Kind, by_kind, judge, quantile, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

WITHIN = 10.0  # seconds after which newcomers notice nothing any more
STOPPED = 60.0  # seconds
RATE = 4.0  # images a second
BEFORE, AFTER = 1.0, 6.0  # seconds of load around a pause
LARGE = 200 * 2**10  # bytes of every other body
UPLOADS = (0.0, 1.0, 0.0, 4.0)  # seconds that one body after the other takes to arrive
PROMPT = 15.0  # seconds within which every request of a pause has an end


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


@pytest.mark.parametrize("seconds", [2.5, 4.0, 8.0])
def test_a_pause_of_an_ingress_loses_no_request_and_makes_none_twice(
    service: ChaosService, seconds: float
) -> None:
    """The proxy sends a request elsewhere while the first ingress may still begin with it."""
    number = int(RATE * (BEFORE + seconds + AFTER))
    calls = [
        Call(
            image_body(n),
            at=n / RATE,
            padding=LARGE if n % 2 else 0,
            upload=UPLOADS[n // 2 % len(UPLOADS)],
        )
        for n in range(number)
    ]
    service.wait_idle()
    made_before = service.made()
    with Load(service.address) as load:
        load.send(calls)
        time.sleep(BEFORE)
        with stopped(service.processes.ingress()):
            time.sleep(seconds)
        answers = load.answers(120)
    service.wait_idle()
    made = service.made() - made_before
    slowest = max(answer.seconds for answer in answers)
    report(
        f"SIGSTOP of one of two ingresses for {seconds:g} s, {RATE:.0f} images a second, every "
        f"other body of {LARGE // 2**10} KiB, half of them sent over 1 and 4 s",
        f"{tally(answers)}, the slowest {slowest:.1f} s; {made} made by the stages",
        f"each made once or ended by a named error within {PROMPT:.0f} s",
    )
    assert {judge(answer).kind for answer in answers} <= {Kind.MADE, Kind.ERROR}
    assert slowest < PROMPT
    assert made == len(by_kind(answers, Kind.MADE))
    service.wait_whole()
