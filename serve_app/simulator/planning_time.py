"""How long decisions take: measured in CPU time of the thread, not simulated.

CPU time, since other programs of the machine are not part of a decision.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Self

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import AdmissionLimits, StageWork
from serve_app.core.capacity.admission_control import AdmissionControl, StageCapacity
from serve_app.core.capacity.cost_model import CostTable, turn_kind
from serve_app.core.capacity.dispatcher import Dispatcher
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.capacity.owed_work import OwedImage
from serve_app.core.capacity.replica_report import ReplicaReport
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, new_sample, with_latents
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import PendingWork, WorkKind
from serve_app.simulator.comparison import SIZE
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.replica import SimSample
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival

IN_FLIGHT = 1000  # samples on one replica, far more than it ever gets
CALLERS = 100
REPLICAS = 256
_PLANS, _DISPATCHES = 500, 200
_IMAGES_OF_REPLICA = 9  # of each, so that every replica has a place, and all must be compared
_MODEL = ModelKey(Stage.BASE)


@dataclass(frozen=True, slots=True)
class DecisionTime:
    """The CPU seconds of one kind of decision."""

    mean: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Return the numbers of these decisions."""
        return cls(fmean(seconds), percentile(sorted(seconds), 0.99))

    def __str__(self) -> str:
        return f"{self.mean * 1e6:.0f} µs on average, p99 {self.p99 * 1e6:.0f} µs"


def measure_planning(plans: int = _PLANS) -> DecisionTime:
    """Return what the step scheduler takes for one step, with many callers' samples that step.

    That is to admit, plan, charge and settle.
    """
    scheduler: StepScheduler[float] = StepScheduler({_MODEL: SIZE})
    for sample, segment in _samples("planned", IN_FLIGHT):
        scheduler.add(with_latents(sample, 0.0, 1), segment)
    steps: list[float] = []
    while len(steps) < plans:
        began = time.thread_time()
        scheduler.admit_ready()
        plan = scheduler.plan()
        planned = time.thread_time()
        assert plan is not None
        is_step = plan.work is WorkKind.STEP
        results = [replace(sample, index=sample.index + is_step) for sample in plan.samples]
        ran = time.thread_time()
        scheduler.charge(plan, 1.0)
        scheduler.settle(plan, results)
        if is_step:
            steps.append(planned - began + time.thread_time() - ran)
    return DecisionTime.of(steps)


def measure_dispatching(images: int = _DISPATCHES) -> DecisionTime:
    """Return what a dispatcher takes to send one image, if it has many replicas to choose from."""
    fleet = Fleet(SIZE.images)
    ids = [str(number) for number in range(REPLICAS)]
    fleet.set_replicas(ids, max_images=IN_FLIGHT)
    for id in ids:
        fleet.apply_report(id, _report(id).to_wire(), 0.0)
    dispatcher = Dispatcher(fleet)
    for number, (sample, segment) in enumerate(_samples("sent", images)):
        dispatcher.add(sample.id, sample, segment, float(number))
    seconds: list[float] = []
    while dispatcher.waiting:
        began = time.thread_time()
        assignment = dispatcher.next_assignment()
        assert assignment is not None
        dispatcher.dispatch(assignment)
        seconds.append(time.thread_time() - began)
    return DecisionTime.of(seconds)


def measure_admitting(jobs: int = _DISPATCHES) -> DecisionTime:
    """Return what it takes to decide about one job, beside those of many callers."""
    control = AdmissionControl(tuple(Stage), AdmissionLimits(1e6, open_requests=2 * IN_FLIGHT))
    callers = [Caller(str(number)) for number in range(CALLERS)]
    for number in range(IN_FLIGHT):
        owed = dict.fromkeys(Stage, 1.0 + number % 7)
        control.owed.put(str(number), OwedImage(callers[number % CALLERS], float(number), owed))
    works = [StageWork(stage, 1, 1.0, 4.0, 4.0) for stage in Stage]
    replicas = dict.fromkeys(Stage, StageCapacity(REPLICAS // 2, SIZE.images))
    seconds: list[float] = []
    for number in range(jobs):
        began = time.thread_time()
        control.judge(callers[number % CALLERS], works, IN_FLIGHT, None, replicas, 0.0)
        seconds.append(time.thread_time() - began)
    return DecisionTime.of(seconds)


def _samples(name: str, number: int) -> list[tuple[SimSample, StageSegment]]:
    """Return images of many callers, with what base does of them."""
    rng, samples = Random(name), []
    for each in range(number):
        arrival = Arrival(0.0, rng.choice((4, 20, 50, 150)), rng.choice((1024, 832)), 1024)
        spec, schedule, _ = image_of(arrival, refiner=False)
        caller = Caller(str(each % CALLERS))
        sample: SimSample = new_sample(f"{name}-{each}", spec, schedule, Stage.BASE, caller=caller)
        samples.append((sample, StageSegment(Stage.BASE, len(schedule), last=True)))
    return samples


def _report(id: str) -> ReplicaReport:
    pending = [
        PendingWork(sample, segment, WorkKind.STEP, due=0)
        for sample, segment in _samples(id, _IMAGES_OF_REPLICA)
    ]
    speed = GpuSpeed()
    costs = {
        turn_kind(WorkKind.STEP, work.sample, lanes=SIZE.rows): speed.step(
            Stage.BASE, work.sample.spec.width, work.sample.spec.height, SIZE.rows
        )
        for work in pending
    }
    return ReplicaReport.of(1, "", pending, (_MODEL,), CostTable(costs, {_MODEL: SIZE}), {})
