"""How long the step scheduler takes to plan one step: measured, not simulated."""

import time
from dataclasses import replace
from random import Random
from statistics import median_high

from serve_app.core.caller import Caller
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, new_sample, with_latents
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import WorkKind
from serve_app.simulator.comparison import SIZE
from serve_app.simulator.image import image_of
from serve_app.simulator.replica import SimSample
from serve_app.simulator.traces import Arrival

IN_FLIGHT = 1000  # samples
CALLERS = 100
_PLANS = 500


def measure_planning_seconds(plans: int = _PLANS) -> float:
    """Return the median seconds of `StepScheduler.plan` with many callers' samples that step."""
    scheduler: StepScheduler[float] = StepScheduler({ModelKey(Stage.BASE): SIZE})
    rng = Random(0)
    for number in range(IN_FLIGHT):
        arrival = Arrival(0.0, rng.choice((4, 20, 50, 150)), rng.choice((1024, 832)), 1024)
        spec, schedule, _ = image_of(arrival, refiner=False)
        caller = Caller(str(number % CALLERS))
        sample: SimSample = new_sample(str(number), spec, schedule, Stage.BASE, caller=caller)
        segment = StageSegment(Stage.BASE, len(schedule), last=True)
        scheduler.add(with_latents(sample, 0.0, 1), segment)
    seconds: list[float] = []
    while len(seconds) < plans:
        began = time.perf_counter()
        scheduler.admit_ready()
        plan = scheduler.plan()
        elapsed = time.perf_counter() - began
        assert plan is not None
        steps = int(plan.work is WorkKind.STEP)
        results = [replace(sample, index=sample.index + steps) for sample in plan.samples]
        scheduler.charge(plan, 1.0)
        scheduler.settle(plan, results)
        if steps:
            seconds.append(elapsed)
    return median_high(seconds)
