"""A simulated replica: the real step scheduler, whose turns take made-up seconds.

It has no clock: its owner gets the length of a turn, and says when the turn has ended.
"""

from collections import Counter
from collections.abc import Iterator

from serve_app.core.caller import Caller
from serve_app.core.capacity.replica_load import KeyLoad, ReplicaLoad
from serve_app.core.capacity.replica_report import encode_batch_key
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, after_step, with_latents
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, PendingWork, Plan, WorkKind, share_by_rows
from serve_app.simulator.gpu_speed import GpuSpeed

_SNAPSHOT_INTERVAL = 5  # steps
SimSample = Sample[float]  # its latents are a number without meaning


class SimReplica:
    """One replica of a stage."""

    def __init__(self, id: str, stage: Stage, size: BatchSize, speed: GpuSpeed) -> None:
        self.id, self.stage, self.size = id, stage, size
        self.owed_seconds = 0.0  # of its time, in full batches
        self.callers = Counter[Caller]()  # the number of images of each
        self.ready = False
        self.leaving = False
        self.rows = 0  # UNet rows of the steps that images took
        self.row_places = 0  # in the batches of these steps, used or empty
        self._speed = speed
        self._scheduler: StepScheduler[float] = StepScheduler({ModelKey(stage): size})
        self._load: ReplicaLoad | None = None  # None: changed since it was last computed
        self._owed_by_image: dict[str, float] = {}
        self._keys: dict[str, str] = {}  # the batch key of each image, encoded
        self._plan: Plan[float] | None = None
        self._turn_seconds = 0.0
        self.charges: list[tuple[Caller, float]] = []  # GPU seconds of the last turn
        self._cancelled: set[str] = set()  # that leave when the current turn has ended
        self._stepped: tuple[SimSample, ...] = ()  # in the last turn
        self._begun: set[str] = set()  # that have taken part in a step here

    @property
    def images(self) -> int:
        """The number of images that the replica has."""
        return self.callers.total()

    @property
    def may_get_images(self) -> bool:
        """Whether it is ready, and not being removed."""
        return self.ready and not self.leaving

    @property
    def load(self) -> ReplicaLoad:
        """What the replica has to do, as a router sees it."""
        if self._load is None:
            by_key: dict[str, list[PendingWork[float]]] = {}
            for pending in self._scheduler.pending():
                by_key.setdefault(self._keys[pending.sample.id], []).append(pending)
            loads = {key: self._key_load(pending) for key, pending in by_key.items()}
            self._load = ReplicaLoad(self.size.images, loads, self.callers)
        return self._load

    def _key_load(self, pending: list[PendingWork[float]]) -> KeyLoad:
        """Return the load of images of one key; the first with steps left says what these take."""
        like = next((work for work in pending if work.steps_left), pending[0])
        empty = self._speed.key_load(like.sample, like.steps_left, self.size)
        return empty.add(*(work.steps_left for work in pending))

    @property
    def working(self) -> bool:
        """Whether a turn is running."""
        return self._plan is not None

    def add(self, sample: SimSample, segment: StageSegment) -> None:
        """Accept a sample, to run it to the end of the segment."""
        self._scheduler.add(sample, segment)
        self._owed_by_image[sample.id] = self._speed.amortized_seconds(sample, segment, self.size)
        self.owed_seconds += self._owed_by_image[sample.id]
        self._keys[sample.id] = encode_batch_key(sample.usual_batch_key)
        self.callers[sample.caller] += 1
        self._load = None

    def has_begun(self, id: str) -> bool:
        """Return whether an image has taken part in a step here."""
        return id in self._begun

    def progress(self) -> Iterator[tuple[str, float]]:
        """Yield the images that have come to a snapshot in the last turn, and what they still need.

        That is in seconds of the replica's time, in full batches.
        """
        for sample in self._stepped:
            if sample.index % _SNAPSHOT_INTERVAL == 0 and sample.id in self._owed_by_image:
                yield sample.id, max(0.0, self._owed_by_image[sample.id])

    def cancel(self, id: str) -> None:
        """Drop an image; one that takes part in the current turn, when that has ended."""
        if self._plan and any(sample.id == id for sample in self._plan.samples):
            self._cancelled.add(id)
        elif id in self._scheduler:
            self._forget(self._scheduler.remove(id))

    def begin_turn(self) -> float | None:
        """Begin the next turn and return its seconds; None when there is nothing to do."""
        self._scheduler.admit_ready()
        self._plan = self._scheduler.plan()
        if self._plan is None:
            return None
        if self._plan.work is WorkKind.STEP:
            self.rows += sum(sample.rows for sample in self._plan.samples)
            self.row_places += self.size.sample_rows
            self._begun.update(sample.id for sample in self._plan.samples)
        self._turn_seconds = self._speed.turn_seconds(self._plan)
        return self._turn_seconds

    def end_turn(self) -> tuple[SimSample, ...]:
        """End the turn and return the samples whose segment is done; they have left."""
        plan = self._plan
        assert plan is not None
        rows = [sample.rows for sample in plan.samples]
        shares = share_by_rows(rows, self._turn_seconds)
        self.charges = [
            (sample.caller, share) for sample, share in zip(plan.samples, shares, strict=True)
        ]
        self._plan = self._load = None
        self._stepped = ()
        if plan.work is WorkKind.STEP:
            results = [after_step(sample, 0.0, (), sample.noise_draws) for sample in plan.samples]
            for sample in plan.samples:
                step = self._speed.steps(sample, sample.index + 1, self.size, self.size.images)
                self._owed_by_image[sample.id] -= step / self.size.images
                self.owed_seconds -= step / self.size.images
            self._stepped = tuple(results)
        else:
            results = list(plan.samples)
            if plan.work is WorkKind.CONDITION:
                results = [
                    sample if sample.latents is not None else with_latents(sample, 0.0, 1)
                    for sample in results
                ]
        self._scheduler.charge(plan, self._turn_seconds)
        finished = self._scheduler.settle(plan, results)
        for sample in finished:
            self._forget(sample)
        cancelled, self._cancelled = self._cancelled, set()
        for id in cancelled:
            if id in self._scheduler:
                self._forget(self._scheduler.remove(id))
        return tuple(sample for sample in finished if sample.id not in cancelled)

    def _forget(self, sample: SimSample) -> None:
        """Take an image that has left the scheduler off the books."""
        self.owed_seconds -= self._owed_by_image.pop(sample.id)
        del self._keys[sample.id]
        self.callers[sample.caller] -= 1
        self.callers = +self.callers
        self._load = None
        self._begun.discard(sample.id)
