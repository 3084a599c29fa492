"""Serve's own processes are killed, and everything is deployed anew, under load."""

import time
from collections import Counter

import pytest

from tests.e2e.chaos import ray_calls
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.measure import together
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import Kind, count, judge, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

REFUSED, CUT = "connection refused", "connection cut"


def test_a_killed_proxy_refuses_connections_for_a_while_and_loses_no_keyed_image(
    chaos_alone: ChaosService,
) -> None:
    before = chaos_alone.made()
    bodies = [image_body(100 + n) for n in range(80)]
    calls = [Call(call.body, call.at, key=f"proxy-{n}") for n, call in enumerate(steady(bodies, 2))]
    with Probe(chaos_alone.address, "/livez") as probe, Load(chaos_alone.address) as load:
        load.send(calls)
        time.sleep(3)
        kill(chaos_alone.processes.proxy())
        answers = load.answers()
    with Load(chaos_alone.address) as load:
        load.send(Call(call.body, key=call.key) for call in calls)
        again = load.answers()
    chaos_alone.wait_idle()
    made = chaos_alone.made() - before
    refused = sorted(answer.sent for answer in answers if way_of(answer) == REFUSED)
    ways = Counter(map(way_of, answers)).most_common()
    report(
        "kill -9 of Serve's proxy, two keyed newcomers a second for 40 s",
        f"{', '.join(f'{number} x {way}' for way, number in ways)}; connections refused for "
        f"{refused[-1] - refused[0]:.1f} s, no answer for {probe.longest_silence:.1f} s; all asked "
        f"again: {tally(again)}; {made} images made for {len(calls)} keys",
        "every keyed image is there for whoever asks again, and none is made twice",
    )
    assert {way for way, _ in ways} <= {"made", REFUSED, CUT}
    assert {judge(answer).kind for answer in again} == {Kind.MADE}
    assert made == len(calls)


def way_of(answer: Answer) -> str:
    """Return how a request ended; a connection was refused, or cut after it had been made."""
    if answer.status:
        return str(judge(answer))
    return REFUSED if answer.failure == "ClientConnectorError" else CUT


def test_a_killed_controller_and_ledger_cost_no_image(chaos_alone: ChaosService) -> None:
    with Load(chaos_alone.address) as load:
        load.send(steady([image_body(300 + n) for n in range(40)], rate=4))
        kill(chaos_alone.processes.controller())
        time.sleep(2)
        kill(chaos_alone.processes.ledger())
        answers = load.answers()
    report(
        "kill -9 of Serve's controller, then of the ledger, four newcomers a second",
        f"{tally(answers)}, slowest {max(answer.seconds for answer in answers):.1f} s",
        "all made",
    )
    assert {judge(answer).kind for answer in answers} == {Kind.MADE}
    chaos_alone.wait_whole()


def test_a_redeploy_under_load_costs_no_image(chaos_alone: ChaosService) -> None:
    calm = max(a.seconds for a in together(chaos_alone, [image_body(400 + n) for n in range(8)]))
    with Load(chaos_alone.address) as load:
        load.send(steady([image_body(410 + n) for n in range(80)], rate=2))
        time.sleep(2)
        changed = chaos_alone.args.model_copy(update={"images": 2})
        chaos_alone.call(ray_calls.deploy, chaos_alone.app, "/", changed)
        answers = load.answers()
    chaos_alone.call(ray_calls.deploy, chaos_alone.app, "/", chaos_alone.args)
    chaos_alone.wait_whole()
    report(
        "a redeploy of every deployment under load, two newcomers a second",
        f"{tally(answers)}, slowest {max(answer.seconds for answer in answers):.1f} s "
        f"(undisturbed {calm:.1f} s)",
        "all made, or refused by name",
    )
    kinds = count(answers)
    assert set(kinds) <= {"made", "503 OVERLOADED", "503 LOADING", "503 DRAINING"}
    assert kinds["made"] >= 76  # of 80: two seconds without a replica to take any
