"""The cluster: pools of replicas on a virtual clock, a router before them, a scaler above them.

Knows no policy of its own: homes and numbers of replicas are chosen by what is handed in.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Sampler, Stage
from serve_app.core.scheduling.step_scheduler import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.replica import SimReplica, SimSample
from serve_app.simulator.traces import Arrival

NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)
Router = Callable[
    [Sequence[SimReplica], SimSample, int, float], SimReplica
]  # steps, and their seconds


@dataclass(frozen=True, slots=True)
class StageObservation:
    """What a scaler may see of a stage: the service's look, and Serve's count."""

    look: StageLoad
    requests: int  # that are there: on replicas, or waiting for one


Scaler = Callable[[float, Mapping[Stage, StageObservation]], Mapping[Stage, int]]


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that was made."""

    arrival: Arrival
    seconds: float  # from asking to having it
    isolated_seconds: float  # seconds that it would have taken with nobody else there


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """How things stood at one look."""

    at: float
    replicas: Mapping[Stage, int]
    owed: Mapping[Stage, float]
    images: int


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What became of a trace."""

    finished: tuple[FinishedImage, ...]
    timeline: tuple[TimelinePoint, ...]
    gpu_seconds: float
    occupancy: float  # steps of images, of the places in batches paid for
    until: float  # when the last image was done


@dataclass(slots=True)
class _ImageProgress:
    arrival: Arrival
    legs: tuple[StageSegment, ...]
    alone: float
    next: int = 0


@dataclass(slots=True)
class Cluster:
    """Runs one trace, once."""

    size: BatchSize
    costs: GpuSpeed
    route: Router
    scale: Scaler | None
    start: Mapping[Stage, int]
    least: Mapping[Stage, int] = field(default_factory=dict)  # replicas of each stage; else none
    gpus: int = 256  # who is to start waits for one that is free
    depth: int = (
        MAX_QUEUED_BATCHES  # batches that a replica may have, the one that steps among them
    )
    loading: float = 40.0  # seconds until a new replica is ready
    observe_every: float = 1.0  # seconds between two looks of the scaler
    _now: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _pools: dict[Stage, list[SimReplica]] = field(default_factory=dict)
    _waiting: dict[Stage, list[tuple[float, int, SimSample, StageSegment]]] = field(
        default_factory=dict
    )
    _journeys: dict[str, _ImageProgress] = field(default_factory=dict)
    _arrived: dict[Stage, float] = field(default_factory=dict)  # seconds, from the start
    _coming: dict[Stage, float] = field(default_factory=dict)  # seconds, of images elsewhere yet
    _expected: dict[Stage, int] = field(default_factory=dict)  # those images
    _done: list[FinishedImage] = field(default_factory=list)
    _moments: list[TimelinePoint] = field(default_factory=list)
    _gpu_seconds: float = 0.0
    _gone: list[SimReplica] = field(default_factory=list)
    _since: dict[str, float] = field(default_factory=dict)

    def run(self, trace: Sequence[Arrival]) -> SimulationResult:
        """The trace is over, and everything that was asked for is made."""
        for stage in Stage:
            self._pools[stage], self._waiting[stage] = [], []
            self._arrived[stage], self._coming[stage], self._expected[stage] = 0.0, 0.0, 0
            for _ in range(self.start.get(stage, 0)):
                self._grow(stage, ready=True)
        for number, arrival in enumerate(trace):
            self._at(arrival.at, partial(self._come, str(number), arrival))
        self._at(0.0, self._look)
        left = len(trace)
        while len(self._done) < left:
            self._now, _, act = heapq.heappop(self._events)
            act()
        for stage in Stage:
            for replica in list(self._pools[stage]):
                self._remove(replica)
        steps, places = sum(r.steps for r in self._gone), sum(r.places for r in self._gone)
        occupancy = steps / places if places else 0.0
        moments = tuple(self._moments)
        return SimulationResult(tuple(self._done), moments, self._gpu_seconds, occupancy, self._now)

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def _come(self, id: str, arrival: Arrival) -> None:
        refiner = self.start.get(Stage.REFINER, 0) > 0
        spec, schedule, legs = journey_of(arrival, refiner=refiner)
        alone = self.costs.isolated_seconds(spec, legs, schedule.start_index, self.size)
        self._journeys[id] = _ImageProgress(arrival, legs, alone)
        sample: SimSample = new_sample(id, spec, schedule, legs[0].stage)
        for leg, share in zip(
            legs, self.costs.amortized_by_segment(sample, legs, self.size), strict=True
        ):
            self._arrived[leg.stage] += share
            self._coming[leg.stage] += share
            self._expected[leg.stage] += 1
        self._send(sample)

    def _send(self, sample: SimSample) -> None:
        journey = self._journeys[sample.id]
        leg = journey.legs[journey.next]
        journey.next += 1
        sample = for_stage(sample, leg.stage)
        self._coming[leg.stage] -= self.costs.amortized_seconds(sample, leg, self.size)
        self._expected[leg.stage] -= 1
        self._place(sample, leg)

    def _place(self, sample: SimSample, leg: StageSegment) -> None:
        """The sample is on a replica that has a place for it, or waits for one: who is bound to a
        replica too early stays behind its queue, however many others come."""
        most = self.depth * self.size.images
        pool = [one for one in self._pools[leg.stage] if one.takes(most)]
        spec, steps = sample.spec, max(0, leg.stop - sample.index)
        turn = self.costs.step(leg.stage, spec.width, spec.height, self.size.rows)
        if not pool:
            due = self._now + steps * turn
            heapq.heappush(self._waiting[leg.stage], (due, next(self._numbers), sample, leg))
            return
        home = self.route(pool, sample, steps, turn)
        home.add(sample, leg)
        self._work(home)

    def _work(self, replica: SimReplica) -> None:
        if replica.working:
            return
        seconds = replica.begin()
        if seconds is not None:
            self._at(self._now + seconds, partial(self._turned, replica))
        elif replica.leaving:
            self._remove(replica)

    def _turned(self, replica: SimReplica) -> None:
        for sample in replica.end():
            journey = self._journeys[sample.id]
            if journey.next < len(journey.legs):
                self._send(sample)
            else:
                asked = self._journeys.pop(sample.id)
                self._done.append(
                    FinishedImage(asked.arrival, self._now - asked.arrival.at, asked.alone)
                )
        self._work(replica)
        self._call(replica.stage)

    def _call(self, stage: Stage) -> None:
        """Those that wait have the places that there are."""
        most = self.depth * self.size.images
        waiting = self._waiting[stage]
        while waiting and any(one.takes(most) for one in self._pools[stage]):
            *_, sample, leg = heapq.heappop(waiting)
            self._place(sample, leg)

    def _look(self) -> None:
        seen = {stage: self._seen(stage) for stage in self._pools}
        replicas = {stage: one.look.replicas for stage, one in seen.items()}
        owed = {stage: one.look.owed for stage, one in seen.items()}
        self._moments.append(TimelinePoint(self._now, replicas, owed, len(self._journeys)))
        if self.scale is not None:
            for stage, target in self.scale(self._now, seen).items():
                self._steer(stage, target)
        self._at(self._now + self.observe_every, self._look)

    def _seen(self, stage: Stage) -> StageObservation:
        pool, waiting = self._pools[stage], self._waiting[stage]
        owed = self._coming[stage] + sum(one.owed for one in pool)
        owed += sum(
            self.costs.amortized_seconds(sample, leg, self.size) for *_, sample, leg in waiting
        )
        here = sum(one.images for one in pool) + len(waiting)
        staying = sum(not one.leaving for one in pool)
        least = self.least.get(stage, 0)
        images = here + self._expected[stage]
        arrived, coming = self._arrived[stage], self._coming[stage]
        return StageObservation(
            StageLoad(staying, least, self.gpus, images, owed, arrived, coming), here
        )

    def _steer(self, stage: Stage, target: int) -> None:
        """Serve chooses who leaves: those that load, else the newest, whatever they have to do."""
        staying = [one for one in self._pools[stage] if not one.leaving]
        free = self.gpus - sum(len(pool) for pool in self._pools.values())
        for _ in range(min(free, target - len(staying))):
            self._grow(stage, ready=False)
        spare = max(0, len(staying) - target)
        for replica in sorted(reversed(staying), key=lambda one: one.ready)[:spare]:
            replica.leaving = True
            if not replica.working:
                self._work(replica)

    def _grow(self, stage: Stage, *, ready: bool) -> None:
        replica = SimReplica(f"{stage}-{next(self._numbers)}", stage, self.size, self.costs)
        self._pools[stage].append(replica)
        self._since[replica.id] = self._now
        replica.ready = ready
        if not ready:
            self._at(self._now + self.loading, partial(self._open, replica))

    def _open(self, replica: SimReplica) -> None:
        if replica.leaving:
            return
        replica.ready = True
        self._call(replica.stage)

    def _remove(self, replica: SimReplica) -> None:
        if replica in self._pools[replica.stage]:
            self._pools[replica.stage].remove(replica)
            self._gone.append(replica)
            self._gpu_seconds += self._now - self._since[replica.id]


def journey_of(
    arrival: Arrival, *, refiner: bool
) -> tuple[ImageSpec, Schedule, tuple[StageSegment, ...]]:
    """What an image is, and its way through the stages."""
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
