"""How many replicas each stage should have, by the work it owes: decisions that the service and the
simulator both take. Work is GPU-seconds, so an image of 150 steps counts for what it is.

Knows no replicas, only their numbers; time is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf

from serve_app.core.diffusion.spec import Stage

_IGNORED_RATE = 0.05  # of a replica: so little that arrives is not worth one more, or the only one


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What is seen of a stage at one time."""

    replicas: int  # those there are, or are coming
    min_replicas: int
    max_replicas: int
    images: int  # under way that are here, or are still to come here
    owed: float  # GPU-seconds that they still need here, in full batches
    arrived_total: float  # GPU-seconds of all that was ever accepted: it only grows
    upstream: float = 0.0  # of what is owed, that of images which are on another stage yet


@dataclass(frozen=True, slots=True)
class ScalingTargets:
    """What scaling is for."""

    target_drain_s: float = 5.0  # seconds in which what is owed now should be done
    target_utilization: float = 0.85  # how much of its time a replica should work, so that few wait
    downscale_delay_s: float = 5.0  # seconds that fewer must have been enough before any goes

    def __post_init__(self) -> None:
        for name, most in (
            ("target_drain_s", inf),
            ("target_utilization", 1.0),
            ("downscale_delay_s", inf),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most or value == inf:
                told = "above 0" if most == inf else f"above 0 and at most {most:g}"
                raise ValueError(f"{name} must be a number {told}, got {value}")


def desired_replicas(load: StageLoad, arrival_rate: float, targets: ScalingTargets) -> int:
    """Enough to do what is owed within the wait, and what arrives, in GPU-seconds a second, without
    falling behind; and one at least where there are images, even if nobody knows yet what they
    take.

    What is coming from another stage can't be begun, so no replica is idle for it: it counts where
    it arrives, which is when the image is accepted, so that the replica is there when it comes.
    """
    for_queue = (load.owed - load.upstream) / targets.target_drain_s
    for_flow = arrival_rate / targets.target_utilization - _IGNORED_RATE
    wanted = max(ceil(max(for_queue, for_flow) - 1e-9), min(1, load.images))
    return min(load.max_replicas, max(load.min_replicas, wanted))


def allocate_gpus(
    desired: Mapping[Stage, int], minimum: Mapping[Stage, int], gpus: int
) -> dict[Stage, int]:
    """What each stage gets of a fixed number of GPUs: what it wants where that is enough for all,
    else its least, and of the rest a share by what it wants. Always the whole number of GPUs is
    used up before anybody goes short."""
    if sum(desired.values()) <= gpus:
        return dict(desired)
    shares = dict(minimum)
    for _ in range(gpus - sum(minimum.values())):
        short = [stage for stage in desired if shares[stage] < desired[stage]]
        shares[min(short, key=lambda stage: (shares[stage] / desired[stage], stage))] += 1
    return shares


@dataclass(frozen=True, slots=True)
class StageTarget:
    """How many replicas a stage has been told to have, and what was enough lately."""

    replicas: int
    max_desired_since: int = 0  # the most that was wanted since `since`
    since: float | None = None  # when fewer than the target began to be enough

    def update(self, desired: int, now: float, targets: ScalingTargets) -> "StageTarget":
        """The course after another look: up at once, down when fewer were enough for a while, and
        then to the most that was wanted in it."""
        if desired >= self.replicas:
            return StageTarget(desired)
        if self.since is None:
            return replace(self, max_desired_since=desired, since=now)
        enough = max(self.max_desired_since, desired)
        if now - self.since < targets.downscale_delay_s:
            return replace(self, max_desired_since=enough)
        return StageTarget(enough)


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """Work that arrives in a second: a mean over some time that leans to what came last."""

    per_second: float = 0.0
    began: float | None = None
    at: float = 0.0
    window_s: float = 30.0  # seconds

    def observe(self, work: float, now: float) -> "ArrivalRate":
        """The flow after so much work since it was last seen: of the first seconds a plain mean."""
        if self.began is None:
            return replace(self, began=now, at=now)
        gone = now - self.at
        if gone <= 0:
            return self
        weight = min(1.0, gone / min(self.window_s, now - self.began))
        mean = self.per_second + weight * (work / gone - self.per_second)
        return replace(self, per_second=mean, at=now)


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """How the stages are steered, from one look to the next: a value."""

    stage_targets: Mapping[Stage, StageTarget] = field(default_factory=dict)
    arrival_rates: Mapping[Stage, ArrivalRate] = field(default_factory=dict)
    arrived_totals: Mapping[Stage, float] = field(default_factory=dict)  # as seen last

    def observe(
        self,
        loads: Mapping[Stage, StageLoad],
        now: float,
        targets: ScalingTargets,
        max_total_replicas: int | None = None,
    ) -> "Autoscaler":
        """The helm after another look at all stages; of a fixed number of `gpus`, if any.

        A model is loaded on a GPU that moves to another stage, so it moves when that was fair for a
        while; or at once, to a stage that has none, and where there are fewer GPUs than before.
        """
        wanted, flows = {}, {}
        for stage, look in loads.items():
            came = max(0.0, look.arrived_total - self.arrived_totals.get(stage, look.arrived_total))
            flows[stage] = flow = self.arrival_rates.get(stage, ArrivalRate()).observe(came, now)
            wanted[stage] = desired_replicas(look, flow.per_second, targets)
        before = {
            s: self.stage_targets.get(s, StageTarget(look.replicas)) for s, look in loads.items()
        }
        if max_total_replicas is None:
            courses = {s: course.update(wanted[s], now, targets) for s, course in before.items()}
        else:
            fair = allocate_gpus(
                wanted,
                {stage: look.min_replicas for stage, look in loads.items()},
                max_total_replicas,
            )
            courses = _moved(before, fair, now, targets, max_total_replicas)
        return Autoscaler(
            courses, flows, {stage: look.arrived_total for stage, look in loads.items()}
        )

    @property
    def targets(self) -> dict[Stage, int]:
        """How many replicas each stage should have."""
        return {stage: course.replicas for stage, course in self.stage_targets.items()}


def _moved(
    courses: Mapping[Stage, StageTarget],
    fair: Mapping[Stage, int],
    now: float,
    aims: ScalingTargets,
    gpus: int,
) -> dict[Stage, StageTarget]:
    """The courses, led to fair shares of the GPUs."""
    starving = any(fair[stage] and not course.replicas for stage, course in courses.items())
    if starving or sum(course.replicas for course in courses.values()) > gpus:
        return {stage: StageTarget(share) for stage, share in fair.items()}
    moved = {
        stage: course.update(min(course.replicas, fair[stage]), now, aims)
        for stage, course in courses.items()
    }
    free = gpus - sum(course.replicas for course in moved.values())
    for stage, course in moved.items():
        more = max(0, min(free, fair[stage] - course.replicas))
        if more:
            moved[stage] = StageTarget(course.replicas + more)
            free -= more
    return moved
