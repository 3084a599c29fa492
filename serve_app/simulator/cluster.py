"""A simulated cluster: pools of replicas on a virtual clock, dispatchers, and an autoscaler.

It has no policy of its own: routing and the number of replicas are decided by what is passed in.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.pool import ReplicaPool, Router
from serve_app.simulator.replica import SimReplica, SimSample
from serve_app.simulator.traces import Arrival

NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)


@dataclass(frozen=True, slots=True)
class StageObservation:
    """What an autoscaler may see of a stage: the service's view, and Ray Serve's count."""

    load: StageLoad
    requests: int  # on replicas, or waiting for one


Scaler = Callable[[float, Mapping[Stage, StageObservation]], Mapping[Stage, int]]


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that was generated."""

    arrival: Arrival
    seconds: float  # from the request to the result
    isolated_seconds: float  # that it would have taken on idle replicas


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """The state of the cluster at one observation."""

    at: float  # seconds
    replicas: Mapping[Stage, int]
    owed: Mapping[Stage, float]  # GPU-seconds
    images: int  # in flight


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The result of running a trace."""

    finished: tuple[FinishedImage, ...]
    timeline: tuple[TimelinePoint, ...]
    gpu_seconds: float
    occupancy: float  # steps of images, as a share of the batch places that were paid for
    finished_at: float  # seconds: when the last image was done


@dataclass(slots=True)
class _ImageProgress:
    arrival: Arrival
    segments: tuple[StageSegment, ...]
    isolated_seconds: float
    next_segment: int = 0


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
    _now: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _ingress_of: dict[str, int] = field(default_factory=dict)  # by caller
    _pools: dict[Stage, ReplicaPool] = field(default_factory=dict)
    _progress: dict[str, _ImageProgress] = field(default_factory=dict)
    _upstream: dict[Stage, _Upstream] = field(default_factory=dict)
    _finished: list[FinishedImage] = field(default_factory=list)
    _timeline: list[TimelinePoint] = field(default_factory=list)
    _gpu_seconds: float = 0.0
    _removed: list[SimReplica] = field(default_factory=list)
    _started_at: dict[str, float] = field(default_factory=dict)

    def run(self, trace: Sequence[Arrival]) -> SimulationResult:
        """Run until every image of the trace is done, and return the result."""
        for stage in Stage:
            self._pools[stage] = ReplicaPool(
                stage, self.size, self.speed, self.route, self.ingresses
            )
            self._upstream[stage] = _Upstream()
            for _ in range(self.start.get(stage, 0)):
                self._add_replica(stage, ready=True)
        for number, arrival in enumerate(trace):
            self._at(arrival.at, partial(self._arrive, str(number), arrival))
        self._at(0.0, self._observe)
        while len(self._finished) < len(trace):
            self._now, _, act = heapq.heappop(self._events)
            act()
        for stage in Stage:
            for replica in list(self._pools[stage].replicas):
                self._remove_replica(replica)
        steps = sum(replica.steps for replica in self._removed)
        places = sum(replica.places for replica in self._removed)
        return SimulationResult(
            finished=tuple(self._finished),
            timeline=tuple(self._timeline),
            gpu_seconds=self._gpu_seconds,
            occupancy=steps / places if places else 0.0,
            finished_at=self._now,
        )

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def _arrive(self, id: str, arrival: Arrival) -> None:
        refiner = self.start.get(Stage.REFINER, 0) > 0
        spec, schedule, segments = image_of(arrival, refiner=refiner)
        isolated = self.speed.isolated_seconds(spec, segments, schedule.start_index, self.size)
        self._progress[id] = _ImageProgress(arrival, segments, isolated)
        caller = Caller(arrival.caller, arrival.weight) if self.fair else NO_CALLER
        self._ingress_of.setdefault(arrival.caller, len(self._ingress_of) % self.ingresses)
        sample: SimSample = new_sample(id, spec, schedule, segments[0].stage, caller=caller)
        shares = self.speed.amortized_by_segment(sample, segments, self.size)
        for segment, share in zip(segments, shares, strict=True):
            upstream = self._upstream[segment.stage]
            upstream.arrived_total += share
            upstream.seconds += share
            upstream.images += 1
        self._enter_next_stage(sample)

    def _enter_next_stage(self, sample: SimSample) -> None:
        progress = self._progress[sample.id]
        segment = progress.segments[progress.next_segment]
        progress.next_segment += 1
        sample = for_stage(sample, segment.stage)
        upstream = self._upstream[segment.stage]
        upstream.seconds -= self.speed.amortized_seconds(sample, segment, self.size)
        upstream.images -= 1
        ingress = self._ingress_of[progress.arrival.caller]
        self._pools[segment.stage].add(sample, segment, self._now, ingress)
        self._dispatch(segment.stage)

    def _dispatch(self, stage: Stage) -> None:
        """Send waiting images to replicas while there are free places."""
        for replica in self._pools[stage].dispatch():
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
            if progress.next_segment < len(progress.segments):
                self._enter_next_stage(sample)
            else:
                del self._progress[sample.id]
                seconds = self._now - progress.arrival.at
                self._finished.append(
                    FinishedImage(progress.arrival, seconds, progress.isolated_seconds)
                )
        self._begin_turn(replica)
        self._dispatch(replica.stage)

    def _observe(self) -> None:
        observations = {stage: self._observation(stage) for stage in self._pools}
        replicas = {stage: seen.load.replicas for stage, seen in observations.items()}
        owed = {stage: seen.load.owed for stage, seen in observations.items()}
        self._timeline.append(TimelinePoint(self._now, replicas, owed, len(self._progress)))
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


def image_of(
    arrival: Arrival, *, refiner: bool
) -> tuple[ImageSpec, Schedule, tuple[StageSegment, ...]]:
    """Return the spec of a requested image, its schedule, and its segments by stage."""
    spec = ImageSpec(
        prompt="a",
        seed=0,
        width=arrival.width,
        height=arrival.height,
        steps=arrival.steps,
        guidance=arrival.guidance,
        handoff=arrival.handoff,
    )
    schedule = _schedule(arrival.steps, arrival.handoff)
    return spec, schedule, stage_segments(schedule, arrival.handoff, refiner=refiner)


@lru_cache(maxsize=4096)
def _schedule(steps: int, handoff: float) -> Schedule:
    return make_schedule(NOISE, Sampler.EULER, steps, None, handoff)
