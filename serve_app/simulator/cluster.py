"""A simulated cluster: pools of replicas on a virtual clock, dispatchers, and an autoscaler.

It has no policy of its own: routing and the number of replicas are decided by what is passed in.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.admission import AdmissionLimits, latest_start
from serve_app.core.capacity.admission_control import Verdict
from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.capacity.owed_work import OwedImage
from serve_app.core.diffusion.sample import for_stage, new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.admission import SimAdmission, stage_works
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.image_progress import ImageProgress
from serve_app.simulator.observation import Scaler, StageObservation
from serve_app.simulator.pool import ReplicaPool, Router
from serve_app.simulator.replica import SimReplica, SimSample
from serve_app.simulator.result import (
    FinishedImage,
    LateImage,
    RefusedImage,
    SimulationResult,
    TimelinePoint,
)
from serve_app.simulator.traces import Arrival


@dataclass(slots=True)
class _Upstream:
    """The work of a stage whose images are still at another one."""

    arrived_total: float = 0.0  # seconds, of all images that ever arrived
    seconds: float = 0.0
    images: int = 0


@dataclass(slots=True)
class Cluster:
    """A cluster that runs one trace, once."""

    size: BatchSize
    speed: GpuSpeed
    route: Router
    scale: Scaler | None
    start: Mapping[Stage, int]  # replicas of each stage at the beginning
    min_replicas: Mapping[Stage, int] = field(default_factory=dict)  # of each stage; default 0
    gpus: int = 256  # a new replica waits until one is free
    load_seconds: float = 40.0  # until a new replica is ready
    observe_every: float = 1.0  # seconds between two observations by the autoscaler
    ingresses: int = 1  # callers use them in turn, each always the same one
    fair: bool = True  # False: the service can't tell callers apart
    limits: AdmissionLimits | None = None  # None: everything is admitted, and nothing is late
    refused_return: bool = False  # once, when their own Retry-After is over
    _now: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _ingress_of: dict[str, int] = field(default_factory=dict)  # by caller
    _pools: dict[Stage, ReplicaPool] = field(default_factory=dict)
    _progress: dict[str, ImageProgress] = field(default_factory=dict)
    _upstream: dict[Stage, _Upstream] = field(default_factory=dict)
    _finished: list[FinishedImage] = field(default_factory=list)
    _timeline: list[TimelinePoint] = field(default_factory=list)
    _gpu_seconds: float = 0.0
    _charged: dict[str, float] = field(default_factory=dict)  # GPU-seconds, by caller
    _removed: list[SimReplica] = field(default_factory=list)
    _started_at: dict[str, float] = field(default_factory=dict)
    _admission: SimAdmission = field(init=False)
    _refused: list[RefusedImage] = field(default_factory=list)
    _late: list[LateImage] = field(default_factory=list)
    _expected: int = 0  # images that have not ended

    def run(self, trace: Sequence[Arrival]) -> SimulationResult:
        """Run until every image of the trace is done, and return the result."""
        self._admission = SimAdmission(self.limits or AdmissionLimits(), self.size)
        for stage in Stage:
            pool = ReplicaPool(stage, self.size, self.speed, self.route, self.ingresses)
            self._pools[stage] = pool
            self._upstream[stage] = _Upstream()
            for _ in range(self.start.get(stage, 0)):
                self._add_replica(stage, ready=True)
        for number, arrival in enumerate(trace):
            self._at(arrival.at, partial(self._arrive, str(number), arrival))
        self._at(0.0, self._observe)
        self._expected = len(trace)
        while self._expected:
            self._now, _, act = heapq.heappop(self._events)
            act()
        for stage in Stage:
            for replica in list(self._pools[stage].replicas):
                self._remove_replica(replica)
        rows = sum(replica.rows for replica in self._removed)
        places = sum(replica.row_places for replica in self._removed)
        return SimulationResult(
            finished=tuple(self._finished),
            timeline=tuple(self._timeline),
            gpu_seconds=self._gpu_seconds,
            occupancy=rows / places if places else 0.0,
            finished_at=self._now,
            refused=tuple(self._refused),
            late=tuple(self._late),
        )

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def _arrive(self, id: str, arrival: Arrival, *, returned: bool = False) -> None:
        refiner = self.start.get(Stage.REFINER, 0) > 0
        spec, schedule, segments = image_of(arrival, refiner=refiner)
        speed, size = self.speed, self.size
        caller = Caller(arrival.caller, arrival.weight) if self.fair else NO_CALLER
        self._ingress_of.setdefault(arrival.caller, len(self._ingress_of) % self.ingresses)
        sample: SimSample = new_sample(id, spec, schedule, segments[0].stage, caller=caller)
        isolated = speed.image_seconds(sample, segments, size)
        due = self._now + speed.image_seconds(sample, segments, size, size.images)
        shares = speed.amortized_by_segment(sample, segments, size)
        if self.limits is not None:
            works = stage_works(sample, segments, shares, speed, size)
            verdict = self._admission.judge(
                caller, works, due, arrival.timeout_s, self._replica_counts(), self._now
            )
            if verdict.refusal is not None:
                self._refuse(id, arrival, verdict, returned=returned)
                return
        owed = {segment.stage: share for segment, share in zip(segments, shares, strict=True)}
        self._progress[id] = ImageProgress(arrival, segments, isolated, due, owed, caller)
        self._admission.begin(id, OwedImage(caller, due, dict(owed)))
        for segment, share in zip(segments, shares, strict=True):
            upstream = self._upstream[segment.stage]
            upstream.arrived_total += share
            upstream.seconds += share
            upstream.images += 1
        self._enter_next_stage(sample)

    def _replica_counts(self) -> dict[Stage, int]:
        return {stage: len(pool.staying) for stage, pool in self._pools.items()}

    def _refuse(self, id: str, arrival: Arrival, verdict: Verdict, *, returned: bool) -> None:
        assert verdict.refusal is not None
        retry_after = verdict.retry_after
        self._refused.append(RefusedImage(arrival, verdict.refusal, retry_after, returned))
        if self.refused_return and retry_after and not returned:
            again = replace(arrival, at=self._now + retry_after)
            self._at(again.at, partial(self._arrive, id, again, returned=True))
        else:
            self._expected -= 1

    def _owe(self, id: str) -> None:
        progress = self._progress[id]
        image = OwedImage(progress.caller, progress.due, dict(progress.owed))
        self._admission.update(id, image)

    def _end(self, id: str) -> ImageProgress:
        """Take an image off the books, however it ended."""
        self._admission.end(id, self._progress[id].caller)
        self._expected -= 1
        return self._progress.pop(id)

    def _enter_next_stage(self, sample: SimSample) -> None:
        progress = self._progress[sample.id]
        segment = progress.segments[progress.next_segment]
        later = progress.segments[progress.next_segment :]
        progress.next_segment += 1
        progress.replica = None
        sample = for_stage(sample, segment.stage)
        upstream = self._upstream[segment.stage]
        upstream.seconds -= self.speed.amortized_seconds(sample, segment, self.size)
        upstream.images -= 1
        if progress.deadline is not None:
            shares = self.speed.amortized_by_segment(sample, later, self.size)
            works = stage_works(sample, later, shares, self.speed, self.size)
            left = self._admission.seconds_from_turn(works, self._replica_counts(), self._now)
            end = partial(self._end_if_waiting, sample.id, progress.next_segment)
            self._at(max(self._now, latest_start(progress.deadline, left)), end)
            if len(later) == len(progress.segments):
                self._at(progress.deadline, partial(self._end_late, sample.id))
        ingress = self._ingress_of[progress.arrival.caller]
        self._pools[segment.stage].add(sample, segment, self._now, ingress)
        self._dispatch(segment.stage)

    def _end_if_waiting(self, id: str, next_segment: int) -> None:
        """Give an image up that can't be in time any more, unless it has begun at this stage."""
        progress = self._progress.get(id)
        if progress is None or progress.next_segment != next_segment:
            return
        if progress.replica is None or not progress.replica.has_begun(id):
            self._end_late(id)

    def _end_late(self, id: str) -> None:
        """Give an image up, if it is not done."""
        if id not in self._progress:
            return
        progress = self._end(id)
        segment, *later = progress.segments[progress.next_segment - 1 :]
        begun = progress.next_segment > 1
        self._pools[segment.stage].drop(id, progress.caller)
        if progress.replica is not None:
            begun |= progress.replica.has_begun(id)
            progress.replica.cancel(id)
        for stage in (segment.stage for segment in later):
            self._upstream[stage].images -= 1
            self._upstream[stage].seconds -= progress.owed[stage]
        self._late.append(LateImage(progress.arrival, begun))
        self._dispatch(segment.stage)

    def _dispatch(self, stage: Stage) -> None:
        """Send waiting images to replicas while there are free places."""
        for id, replica in self._pools[stage].dispatch():
            self._progress[id].replica = replica
            self._begin_turn(replica)

    def _begin_turn(self, replica: SimReplica) -> None:
        if replica.working:
            return
        seconds = replica.begin_turn()
        if seconds is not None:
            self._at(self._now + seconds, partial(self._end_turn, replica))
        elif replica.leaving:
            self._remove_replica(replica)

    def _end_turn(self, replica: SimReplica) -> None:
        for sample in self._pools[replica.stage].end_turn(replica):
            progress = self._progress[sample.id]
            progress.owed.pop(replica.stage)
            if progress.next_segment < len(progress.segments):
                self._owe(sample.id)
                self._enter_next_stage(sample)
            else:
                self._end(sample.id)
                seconds = self._now - progress.arrival.at
                image = FinishedImage(progress.arrival, seconds, progress.isolated_seconds)
                self._finished.append(image)
        for caller, seconds in replica.charges:
            self._charged[caller.name] = self._charged.get(caller.name, 0.0) + seconds
        for id, seconds in replica.progress():
            self._progress[id].owed[replica.stage] = seconds
            self._owe(id)
        self._begin_turn(replica)
        self._dispatch(replica.stage)

    def _observe(self) -> None:
        observations = {stage: self._observation(stage) for stage in self._pools}
        replicas = {stage: seen.load.replicas for stage, seen in observations.items()}
        owed = {stage: seen.load.owed for stage, seen in observations.items()}
        images, charged = len(self._progress), dict(self._charged)
        self._timeline.append(TimelinePoint(self._now, replicas, owed, images, charged))
        if self.scale is not None:
            for stage, target in self.scale(self._now, observations).items():
                self._scale_to(stage, target)
        self._at(self._now + self.observe_every, self._observe)

    def _observation(self, stage: Stage) -> StageObservation:
        pool, upstream = self._pools[stage], self._upstream[stage]
        requests = pool.images
        load = StageLoad(
            replicas=len(pool.staying),
            min_replicas=self.min_replicas.get(stage, 0),
            max_replicas=self.gpus,
            images=requests + upstream.images,
            owed=upstream.seconds + pool.owed_seconds,
            arrived_total=upstream.arrived_total,
            upstream=upstream.seconds,
        )
        return StageObservation(load, requests)

    def _scale_to(self, stage: Stage, target: int) -> None:
        """Add or remove replicas.

        As in Ray Serve, replicas that still load are removed first, then the newest, whatever they
        have to do. A replica that is being removed finishes its work.
        """
        staying = self._pools[stage].staying
        free = self.gpus - sum(len(pool.replicas) for pool in self._pools.values())
        for _ in range(min(free, target - len(staying))):
            self._add_replica(stage, ready=False)
        spare = max(0, len(staying) - target)
        newest_first = staying[::-1]
        for replica in sorted(newest_first, key=lambda replica: replica.ready)[:spare]:
            replica.leaving = True
            if not replica.working:
                self._begin_turn(replica)

    def _add_replica(self, stage: Stage, *, ready: bool) -> None:
        replica = SimReplica(f"{stage}-{next(self._numbers)}", stage, self.size, self.speed)
        self._pools[stage].replicas.append(replica)
        self._started_at[replica.id] = self._now
        replica.ready = ready
        if not ready:
            self._at(self._now + self.load_seconds, partial(self._finish_loading, replica))

    def _finish_loading(self, replica: SimReplica) -> None:
        replica.ready = True  # without effect if it has been removed meanwhile
        self._dispatch(replica.stage)

    def _remove_replica(self, replica: SimReplica) -> None:
        replicas = self._pools[replica.stage].replicas
        if replica in replicas:
            replicas.remove(replica)
            self._removed.append(replica)
            self._gpu_seconds += self._now - self._started_at[replica.id]
