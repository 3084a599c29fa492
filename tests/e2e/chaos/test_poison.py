"""An image that kills every replica it comes to, among others that do not."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.measure import sampled
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

PATIENCE = 75.0  # seconds
BLAMELESS = "a-key-of-the-others"


@dataclass(frozen=True, slots=True)
class Poison:
    """An image that kills its replica, and how many it kills before it is convicted.

    Each is asked for with a key of its own: three convictions of one caller refuse it for a while.
    """

    when: str
    fault: str
    key: str
    most: int = 2


POISONS = {
    "at-once": Poison("at its first step", "fault:kill@0", "a-key-for-at-once"),
    "after-a-snapshot": Poison(
        "at one step after a snapshot", "fault:kill@12", "a-key-for-after-a-snapshot"
    ),
    "by-breaking-the-device": Poison(
        "by an error after which nothing runs on the device",
        "fault:break@12",
        "a-key-for-by-breaking-the-device",
    ),
    "after-every-snapshot": Poison(
        "once after every snapshot, so that it gets further with each death",
        " ".join(f"fault:kill@{step}*1" for step in range(6, 96, 5)),
        "a-key-for-after-every-snapshot",
    ),
    "after-every-quarantine": Poison(
        "once at every eighth step, so that it is cleared in between",
        " ".join(f"fault:kill@{step}*1" for step in range(8, 96, 8)),
        "a-key-for-after-every-quarantine",
        most=3,
    ),
}


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service that takes a snapshot every five steps of 40 ms."""
    keys = (BLAMELESS, *(poison.key for poison in POISONS.values()))
    folder = tmp_path_factory.mktemp("poison")
    with own_service(ray_of_its_own, folder, seconds_scale=0.3, keys=keys) as service:
        yield service


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_an_image_that_kills_replicas_is_convicted_and_nobody_else_is_blamed(
    service: ChaosService, poison: Poison
) -> None:
    """Only a second death while it ran alone convicts.

    One that survives its time alone is cleared, and its next death is again in others' company:
    that costs a third replica. It names no seed, as most callers don't, and is sent again.
    """
    seen: set[int] = set()

    def watch() -> None:
        for deployment in DEPLOYMENTS.values():
            seen.update(process.pid for process in service.processes.replicas(deployment))

    watch()
    whole = len(seen)
    bodies = [image_body(seed) for seed in range(7)]
    deadly = image_body(0, steps=150, prompt=f"a fox {poison.fault}")
    del deadly["seed"]
    with sampled(watch), Load(service.address) as load:
        (sent,) = load.send([Call(deadly, caller=poison.key)])
        others = load.send(Call(body, caller=BLAMELESS) for body in bodies)
        try:
            until(sent.done, PATIENCE)
        except TimeoutError:
            verdict = f"no end after {PATIENCE:.0f} s"
        else:
            verdict = str(judge(sent.result()))
        until(lambda: all(other.done() for other in others), 120)
        answers = [other.result() for other in others]
        again = load.send(Call(deadly, caller=key) for key in (poison.key, BLAMELESS))
        retries = [str(judge(retry.result(PATIENCE))) for retry in again]
    service.wait_whole()
    watch()
    deaths = len(seen) - whole
    report(
        f"an image that kills its replica {poison.when}, beside 7 others",
        f"{deaths} replicas killed; it ended with {verdict}, sent again with {retries}; the "
        f"others: {tally(answers)}",
        f"at most {poison.most} killed; 422 IMAGE_KILLS_REPLICA, at once when it is sent again; "
        "the others made",
    )
    assert deaths <= poison.most
    assert [verdict, *retries] == ["422 IMAGE_KILLS_REPLICA"] * 3
    assert {judge(answer).kind for answer in answers} == {Kind.MADE}
