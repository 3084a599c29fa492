"""One caller's flood beside another's images, over HTTP: by keys, on one ingress and on two."""

from collections import Counter

import pytest

from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import count, quantile

pytestmark = [pytest.mark.ray, pytest.mark.long]

FLOODING, STEADY = "a-key-of-the-flood", "a-key-of-the-other"
STEPS, INTERVAL = 20, 2.0  # seconds between two images


def steady_calls(number: int) -> list[Call]:
    return [
        Call(image_body(1000 + i, steps=STEPS), at=1 + i * INTERVAL, caller=STEADY, group="steady")
        for i in range(number)
    ]


def p95(answers: list[Answer]) -> float:
    """Return the 95th percentile of the steady caller's seconds."""
    return quantile((a.seconds for a in answers if a.call.group == "steady"), 0.95)


def send(service: ChaosService, calls: list[Call]) -> list[Answer]:
    with Load(service.address) as load:
        load.send(calls)
        answers = load.answers()
    steady = [answer for answer in answers if answer.call.group == "steady"]
    assert count(steady) == Counter(made=len(steady))  # a flood may be refused in part
    service.wait_idle()
    return answers


@pytest.mark.parametrize("ingress", [1, 2])
def test_a_flood_costs_another_caller_at_most_one_image_time(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory, ingress: int
) -> None:
    folder = tmp_path_factory.mktemp(f"fair{ingress}")
    with own_service(ray_of_its_own, folder, ingress=ingress, keys=(FLOODING, STEADY)) as service:
        alone = p95(send(service, steady_calls(8)))
        full = [Call(image_body(i, steps=STEPS), caller=STEADY, group="steady") for i in range(8)]
        allowed = p95(send(service, full)) + alone
        for number, steps in ((200, 10), (20, 150), (300, 10)):  # more than may be open
            flood = [Call(image_body(i, steps=steps), caller=FLOODING) for i in range(number)]
            shared = p95(send(service, flood + steady_calls(8)))
            report(
                f"caller A sends {number} images of {steps} steps, caller B one each "
                f"{INTERVAL:g} s, {ingress} ingress",
                f"B's p95 {shared:.1f} s, {alone:.1f} s alone",
                f"at most {allowed:.1f} s",
            )
            assert shared <= allowed
