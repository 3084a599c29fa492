"""Replicas that are killed one after the other under load, and some that are only stopped."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.measure import capacity, spread
from tests.e2e.chaos.processes import kill, stopped
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, count, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1800)]

KILLS = 20
IMAGES = 1000
STEPS = 20
STOPPED_S = 20.0  # of each stop, and between two of them
SHARE = 0.4  # of the capacity that is used: half of the replicas may be loading
POISON = "a fox fault:kill@6"  # ends the replica at its step 6, each time
POISON_AFTER = (4, 12)  # the kills halfway after which one comes; a third would bar the caller
CONVICTED = "422 IMAGE_KILLS_REPLICA"


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service that makes about twelve images a second."""
    with own_service(
        ray_of_its_own, tmp_path_factory.mktemp("kills"), seconds_scale=0.3
    ) as service:
        yield service


@pytest.mark.parametrize("stops", [0, KILLS // 2], ids=["kills", "kills-and-stops"])
def test_twenty_killed_or_stopped_replicas_cost_no_image(service: ChaosService, stops: int) -> None:
    """Kill a replica every few seconds, or stop every second one with SIGSTOP for as long.

    A stopped replica goes on afterwards, before Serve would replace it. Where replicas are only
    killed, two images come that kill more of them: each is convicted, and no other image is.
    """
    rate = SHARE * capacity(service, [image_body(n, steps=STEPS) for n in range(64)])
    choose, pause = random.Random(stops), STOPPED_S if stops else IMAGES / rate / KILLS
    bodies = (image_body(1000 + n, steps=STEPS) for n in range(IMAGES))
    calls = steady(bodies, min(rate, IMAGES / (KILLS * pause)))
    poison: list[Future[Answer]] = []
    with Load(service.address) as load:
        started = time.monotonic()
        sent = load.send(calls)
        for number in range(KILLS):
            time.sleep(max(0.0, started + number * pause - time.monotonic()))
            deployment = DEPLOYMENTS[choose.choice(list(Stage))]
            victim = choose.choice(until(partial(service.processes.replicas, deployment), 240))
            if stops and number % 2:
                with stopped(victim):
                    time.sleep(pause)
            else:
                kill(victim)
            if not stops and number in POISON_AFTER:
                body = image_body(number, steps=60, prompt=POISON)
                poison += load.send([Call(body, at=pause / 2)])
        answers = [future.result() for future in sent]
        convicted = [future.result() for future in poison]
    done = f"{KILLS - stops} kills -9" + (
        f" and {stops} x {pause:.0f} s of SIGSTOP" if stops else ""
    )
    report(
        f"{done} of stage replicas, {IMAGES} images, at most {SHARE:.0%} of the capacity, and "
        f"{len(convicted)} images that kill their replica",
        f"{tally(answers)}; {spread([answer.seconds for answer in answers])}; those that kill: "
        f"{tally(convicted)}",
        ">= 99.9 % made, all bytes right, nothing hung, every error named; who kills is convicted, "
        "and nobody else",
    )
    assert all(str(judge(answer)) == CONVICTED for answer in convicted)
    assert CONVICTED not in count(answers)
    assert count(answers)[Kind.MADE] >= 0.999 * IMAGES
    assert {judge(answer).kind for answer in answers} <= {Kind.MADE, Kind.ERROR}
    service.wait_whole()


def test_keyed_images_of_vanished_clients_are_made_once_while_replicas_are_killed(
    service: ChaosService,
) -> None:
    """Every second client has a key, and all leave while stage replicas die under their images."""
    calls = [
        Call(
            image_body(9000 + n, steps=60),
            at=n / 3,
            key=f"under-kills-{n}" if n % 2 else None,
            leaves_after=1.5,
        )
        for n in range(60)
    ]
    keyed = [call for call in calls if call.key]
    with Load(service.address) as load:
        load.send(calls)
        for stage in (Stage.BASE, Stage.REFINER, Stage.BASE, Stage.REFINER):
            time.sleep(4)
            kill(until(partial(service.processes.replicas, DEPLOYMENTS[stage]), 240)[0])
        answers = load.answers()
    service.wait_whole()
    until(lambda: (service.health() or {}).get("owedSeconds") == 0, 240)
    service.wait_idle()
    before = service.made()
    with Load(service.address) as load:
        load.send(Call(call.body, key=call.key) for call in keyed)
        again = load.answers()
    later = service.made() - before
    report(
        f"4 kills -9 of stage replicas, {len(calls)} clients that vanish, {len(keyed)} of them "
        "with an Idempotency-Key",
        f"{tally(answers)}; asked again under the keys: {tally(again)}, {later} of them made only "
        "then",
        "what has a key is made once and answered from the ledger, all bytes right",
    )
    assert {judge(answer).kind for answer in answers} <= {Kind.LEFT, Kind.MADE}
    assert count(again) == {"made": len(keyed)}
    assert later == 0


def test_all_replicas_killed_at_once_cost_no_image(service: ChaosService) -> None:
    calls = steady((image_body(5000 + n, steps=60) for n in range(16)), rate=8)
    with Load(service.address) as load:
        load.send(calls)
        until(lambda: any(step > 12 for step in service.in_flight().values()))
        for deployment in DEPLOYMENTS.values():
            for replica in service.processes.replicas(deployment):
                kill(replica)
        answers = load.answers()
    slowest = max(answer.seconds for answer in answers)
    report(
        "kill -9 of all four stage replicas at once, 16 images",
        f"{tally(answers)}; the slowest in {slowest:.1f} s",
        "all made, all bytes right",
    )
    assert {judge(answer).kind for answer in answers} == {Kind.MADE}
    service.wait_whole()
