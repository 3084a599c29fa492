"""Clients that vanish, a quarter of them with an Idempotency-Key."""

from contextlib import suppress

import pytest

from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.processes import resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import Kind, by_kind, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

CLIENTS, KEYED = 200, 50
GROWTH, REST = 64.0, 30.0  # MiB that the ingress may keep, and seconds until then


def test_vanished_clients_leave_nothing_behind_and_keyed_images_are_made(
    chaos_alone: ChaosService,
) -> None:
    chaos_alone.wait_idle()
    ingress = chaos_alone.processes.ingress()
    before, memory = chaos_alone.made(), resident(ingress)
    calls = [
        Call(
            image_body(1000 + n, steps=10),
            at=n / 20,
            key=f"gone-{n}" if n % (CLIENTS // KEYED) == 0 else None,
            leaves_after=0.1 + 0.4 * (n % 7) / 7,
        )
        for n in range(CLIENTS)
    ]
    with Load(chaos_alone.address) as load:
        load.send(calls)
        answers = load.answers()
    vanished = by_kind(answers, Kind.LEFT)
    chaos_alone.wait_idle(120)
    made = chaos_alone.made() - before
    with Load(chaos_alone.address) as load:
        load.send(Call(call.body, key=call.key) for call in calls if call.key)
        again = load.answers()
    with suppress(TimeoutError):
        until(lambda: resident(ingress) - memory <= GROWTH, REST)
    kept = resident(ingress) - memory
    later = chaos_alone.made() - before - made  # of clients that left before they were heard
    report(
        f"{CLIENTS} clients vanish, {KEYED} of them with an Idempotency-Key",
        f"{len(vanished)} left, {made} images made; all {KEYED} keyed asked again: "
        f"{tally(again)}, {later} made only then; ingress {memory:.0f} {kept:+.0f} MiB",
        "the keyed are made and kept, the others cost nothing; the ingress is back within "
        f"{GROWTH:.0f} MiB, {REST:.0f} s later",
    )
    assert {judge(answer).kind for answer in again} == {Kind.MADE}
    in_time = len(answers) - len(vanished)
    assert KEYED <= made + later <= KEYED + in_time + 4  # four may have been in their last step
    assert kept <= GROWTH
