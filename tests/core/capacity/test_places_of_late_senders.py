"""The places of a replica and the steps that it takes, when a sender hears late of an end."""

from collections import Counter, deque

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.routing import has_place
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import WorkKind
from tests.support.scheduler_runs import next_plan, run_plan, sample, scheduler_of

HEAVY, LIGHT = Caller("heavy", 3.0), Caller("light")
BATCH, LATE = 4, 3  # images; turns after which a sender hears of an end
SECONDS = {WorkKind.CONDITION: 0.01, WorkKind.STEP: 1.0}


def test_a_caller_keeps_its_share_while_another_has_bound_three_batches() -> None:
    scheduler = scheduler_of(*(sample(f"old{n}", 100, caller=LIGHT) for n in range(12)))
    known = Counter({LIGHT: 12})
    steps, sent = Counter[Caller](), 0
    news = deque[list[Caller]]([[] for _ in range(LATE)])
    while steps.total() < 400:
        known.subtract(news.popleft())
        while has_place(BATCH, known, HEAVY, same_key=BATCH, keys=1):
            image = sample(f"new{sent}", 8, caller=HEAVY)
            scheduler.add(image, StageSegment(Stage.BASE, 8, last=False))
            known[HEAVY] += 1
            sent += 1
        plan = next_plan(scheduler)
        assert plan is not None
        steps.update(image.caller for image in plan.samples if plan.work is WorkKind.STEP)
        scheduler.charge(plan, SECONDS[plan.work])
        news.append([image.caller for image in scheduler.settle(plan, run_plan(plan))])
    assert steps[HEAVY] / steps[LIGHT] == pytest.approx(3, rel=0.05)
