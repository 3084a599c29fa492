"""Faults that take seconds: every request is classified, and every picture compared."""

from collections import Counter
from functools import partial

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load, steady
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import count, judge, tally
from tests.support.waiting import until

pytestmark = pytest.mark.ray

KEYED, UNKEYED = 6, 18


def test_two_images_of_one_request_run_on_two_replicas(chaos: ChaosService) -> None:
    """Through one ingress: of another one's images it learns from reports, up to a second late."""
    for seed in range(3):
        before = chaos.finished(Stage.BASE)
        pair = chaos.answer(Call(image_body(seed, steps=6, imageCount=2)))
        assert pair.status == 201
        after = chaos.finished(Stage.BASE)
        assert [after[pid] - before[pid] for pid in before] == [1, 1]


def test_a_network_that_raises_is_an_error_with_a_name_for_its_own_image_alone(
    chaos: ChaosService,
) -> None:
    others = [Call(image_body(seed)) for seed in range(8)]
    with Load(chaos.address) as load:
        load.send(others[:4])
        (failing,) = load.send([Call(image_body(0, prompt="a fox fault:fail@3"))])
        load.send(others[4:])
        answers = load.answers(60)
    report(
        "a network that raises at one image's step, beside 8 others",
        tally(answers),
        "a named error for that image, all others made",
    )
    assert str(judge(failing.result())) == "500 INTERNAL"
    assert count(answers) == Counter({"made": 8, "500 INTERNAL": 1})


def test_images_that_raise_one_after_the_other_cost_no_replica(chaos: ChaosService) -> None:
    before = [chaos.processes.replicas(DEPLOYMENTS[stage]) for stage in Stage]
    answers = [chaos.answer(Call(image_body(n, prompt="a fox fault:fail@0"))) for n in range(12)]
    unwell = [reason for stage in Stage for reason in chaos.unwell(stage)]
    report(
        f"{len(answers)} images in turn whose network raises at its first step",
        f"{tally(answers)}; replicas that fail their health check: {unwell or 'none'}",
        "named errors; the replicas stay",
    )
    assert count(answers) == Counter({"500 INTERNAL": len(answers)})
    assert not unwell
    assert before == [chaos.processes.replicas(DEPLOYMENTS[stage]) for stage in Stage]


def test_an_image_whose_numbers_are_not_finite_is_an_error_and_its_neighbours_are_made(
    chaos: ChaosService,
) -> None:
    with Load(chaos.address) as load:
        (sick,) = load.send([Call(image_body(0, prompt="a fox fault:nan@3"))])
        load.send(Call(image_body(seed)) for seed in range(8))
        answers = load.answers(60)
    health = chaos.health()
    report(
        "an image that becomes NaN at one step, beside 8 others",
        f"{tally(answers)}; /health {health and health['status']}",
        "never a success, the others made, the replica stays",
    )
    assert str(judge(sick.result())) == "500 NUMERIC_FAULT"
    assert sick.result().headers["x-should-retry"] == "false"
    assert count(answers) == Counter({"made": 8, "500 NUMERIC_FAULT": 1})
    assert health["status"] == "ready"


def test_clients_vanish_and_what_has_a_key_is_made_once(chaos: ChaosService) -> None:
    before = chaos.made()
    leaving = [
        Call(
            image_body(100 + n, steps=120),
            key=f"vanished-{n}" if n < KEYED else None,
            leaves_after=1.0,  # when a busy machine too has taken all of them
        )
        for n in range(KEYED + UNKEYED)
    ]
    with Load(chaos.address) as load:
        load.send(leaving)
        answers = load.answers(60)
        until(lambda: chaos.made() - before >= KEYED)
        chaos.wait_idle()
        made = chaos.made() - before
        again = [f.result(60) for f in load.send(Call(c.body, key=c.key) for c in leaving[:KEYED])]
    twice = chaos.made() - before - made
    report(
        f"{len(leaving)} clients vanish, {KEYED} of them with an Idempotency-Key",
        f"{tally(answers)}, {made} images made; asked again under the keys: {tally(again)}, "
        f"{twice} made again",
        "what has a key is made once and kept, the rest costs nothing",
    )
    assert count(again) == Counter(made=KEYED)
    assert twice == 0
    most = KEYED + chaos.args.refiner * chaos.args.images  # which may have been in their last step
    assert made <= most < len(leaving)


def test_images_under_load_keep_their_bytes_when_a_replica_of_each_stage_is_killed(
    chaos: ChaosService,
) -> None:
    calls = steady([image_body(seed, steps=40) for seed in range(40)], rate=10)
    with Load(chaos.address) as load:
        load.send(calls)
        for stage in Stage:
            until(partial(chaos.is_busy, stage))
            kill(chaos.processes.replicas(DEPLOYMENTS[stage])[0])
        answers = load.answers(60)
    slowest = max(answer.seconds for answer in answers)
    report(
        "kill -9 of a base replica and a refiner under load",
        f"{tally(answers)}, the slowest in {slowest:.1f} s",
        "all made, with the right bytes",
    )
    assert count(answers) == Counter(made=len(calls))
