"""`SimReplica`: the real scheduler, whose turns take pretended seconds.

Knows no cluster and no clock: whoever has one asks how long a turn takes, and says when it ended.
"""

from collections.abc import Hashable

from serve_app.core.capacity.routing import KeyLoad, ReplicaLoad
from serve_app.core.diffusion.sample import Sample, StageSegment, after_step, with_latents
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import BatchSize, Plan, StepScheduler, WorkKind
from serve_app.simulator.gpu_speed import GpuSpeed

SimSample = Sample[float]  # latents are a number that nobody looks at


class SimReplica:
    """One replica of a stage."""

    def __init__(self, id: str, stage: Stage, size: BatchSize, costs: GpuSpeed) -> None:
        self.id, self.stage, self.size = id, stage, size
        self.owed = 0.0  # seconds of its time, where batches are full
        self.images = 0
        self.ready = False
        self.leaving = False
        self.busy = 0.0  # seconds that turns took
        self.steps, self.places = 0, 0  # of images: taken, and paid for
        self._costs = costs
        self._scheduler: StepScheduler[float] = StepScheduler({"": size})
        self._home: ReplicaLoad | None = None  # until something changes
        self._owed: dict[str, float] = {}
        self._plan: Plan[float] | None = None

    def takes(self, most: int) -> bool:
        """Whether one more image may come, of so many at most."""
        return self.ready and not self.leaving and self.images < most

    @property
    def load(self) -> ReplicaLoad:
        """How a router sees it."""
        if self._home is None:
            crowds: dict[Hashable, KeyLoad] = {}
            for one in self._scheduler.pending():
                sample, known = one.sample, crowds.get(one.sample.spec.latent_shape)
                steps, longest = (known.steps, known.max_steps) if known else (0, 0)
                turn = self._costs.step(
                    self.stage, sample.spec.width, sample.spec.height, self.size.rows
                )
                crowd = KeyLoad(steps + one.steps_left, max(longest, one.steps_left), turn)
                crowds[sample.spec.latent_shape] = crowd
            self._home = ReplicaLoad(self.id, self.size.images, crowds)
        return self._home

    @property
    def working(self) -> bool:
        """Whether a turn is under way."""
        return self._plan is not None

    def add(self, sample: SimSample, leg: StageSegment) -> None:
        """The sample will be walked to the leg's end."""
        self._scheduler.add(sample, leg)
        self._owed[sample.id] = self._costs.amortized_seconds(sample, leg, self.size)
        self.owed += self._owed[sample.id]
        self.images += 1
        self._home = None

    def begin(self) -> float | None:
        """The seconds of the turn that begins now; None when there is nothing to do."""
        self._plan = self._scheduler.plan()
        if self._plan is None:
            return None
        seconds = self._costs.turn_seconds(self._plan)
        self.busy += seconds
        if self._plan.work is WorkKind.STEP:
            self.steps += len(self._plan.samples)
            self.places += self.size.images
        return seconds

    def end(self) -> tuple[SimSample, ...]:
        """The turn is over; those whose leg is done have left."""
        plan = self._plan
        assert plan is not None
        self._plan = self._home = None
        if plan.work is WorkKind.STEP:
            results = [after_step(one, 0.0, (), one.noise_draws) for one in plan.samples]
            spec = plan.samples[0].spec
            whole = self._costs.step(self.stage, spec.width, spec.height, self.size.rows)
            for one in plan.samples:
                self._done(one.id, whole / self.size.images)
        else:
            results = list(plan.samples)
            if plan.work is WorkKind.CONDITION:
                results = [
                    one if one.latents is not None else with_latents(one, 0.0, 1) for one in results
                ]
        done = self._scheduler.settle(plan, results)
        for one in done:
            self.owed -= self._owed.pop(one.id)
            self.images -= 1
        return done

    def _done(self, id: str, seconds: float) -> None:
        self._owed[id] -= seconds
        self.owed -= seconds
