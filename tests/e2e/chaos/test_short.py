"""Faults that take seconds: every request is classified, and every picture compared."""

from collections import Counter
from functools import partial

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Load, steady
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import count, tally
from tests.support.waiting import until

pytestmark = pytest.mark.ray


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
    counts = count(answers)
    slowest = max(answer.seconds for answer in answers)
    report(
        "kill -9 of a base replica and a refiner under load",
        f"{tally(answers)}, the slowest in {slowest:.1f} s",
        "all made, with the right bytes",
    )
    assert counts == Counter(made=len(calls))
