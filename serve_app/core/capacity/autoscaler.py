"""How many replicas each stage should have, by the work that it owes.

The service and the simulator both use these decisions. Work is counted in GPU-seconds, so that an
image of 150 steps counts for more than a draft. No Ray and no clock: time is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf

from serve_app.core.diffusion.spec import Stage

# Arrival load, in replicas, that is ignored: it neither adds a replica nor keeps the last one.
_IGNORED_RATE = 0.05
# Names of the fields of `ScalingTargets` that are understood for one more release.
DEPRECATED_TARGET_NAMES = {
    "wait": "target_drain_s",
    "busy": "target_utilization",
    "patience": "downscale_delay_s",
}


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What is observed of a stage at one time."""

    replicas: int  # present or starting
    min_replicas: int
    max_replicas: int
    images: int  # in flight, at this stage or still to come to it
    owed: float  # GPU-seconds that these images still need here, in full batches
    arrived_total: float  # GPU-seconds here of all images ever accepted: it only grows
    upstream: float = 0.0  # the part of `owed` of images that are still at another stage


@dataclass(frozen=True, slots=True)
class ScalingTargets:
    """What autoscaling aims for. Raises `ValueError` for a value that is out of range."""

    target_drain_s: float = 5.0  # seconds in which the work owed now should be done
    target_utilization: float = 0.85  # share of its time that a replica should work
    downscale_delay_s: float = 5.0  # seconds for which fewer replicas must have been enough

    def __post_init__(self) -> None:
        for name, maximum in (
            ("target_drain_s", inf),
            ("target_utilization", 1.0),
            ("downscale_delay_s", inf),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= maximum or value == inf:
                limits = "above 0" if maximum == inf else f"above 0 and at most {maximum:g}"
                raise ValueError(f"{name} must be a number {limits}, got {value!r}")


def desired_replicas(load: StageLoad, arrival_rate: float, targets: ScalingTargets) -> int:
    """Return the number of replicas that a stage needs, within its bounds.

    There are enough to do the owed work within the target drain time, and enough for the arriving
    work, `arrival_rate` in GPU-seconds per second. A stage with images has at least one replica,
    even before anything is known of their cost.

    Work that is still at another stage cannot begin here, so no replica waits for it. It counts as
    arriving work from the moment the image is accepted, so that the replica is ready in time.
    """
    for_queue = (load.owed - load.upstream) / targets.target_drain_s
    for_arrivals = arrival_rate / targets.target_utilization - _IGNORED_RATE
    wanted = max(ceil(max(for_queue, for_arrivals) - 1e-9), min(1, load.images))
    return min(load.max_replicas, max(load.min_replicas, wanted))


def allocate_gpus(
    desired: Mapping[Stage, int], minimum: Mapping[Stage, int], gpus: int
) -> dict[Stage, int]:
    """Return each stage's share of a fixed number of GPUs.

    Every stage gets what it desires if the GPUs suffice for all. If not, each gets its minimum, and
    the rest is divided in proportion to what the stages desire, until all GPUs are used.
    """
    if sum(desired.values()) <= gpus:
        return dict(desired)
    shares = dict(minimum)
    for _ in range(gpus - sum(minimum.values())):
        short = [stage for stage in desired if shares[stage] < desired[stage]]
        shares[min(short, key=lambda stage: (shares[stage] / desired[stage], stage))] += 1
    return shares


@dataclass(frozen=True, slots=True)
class StageTarget:
    """The number of replicas that a stage should have, and what it recently desired."""

    replicas: int
    max_desired_since: int = 0  # the maximum desired since `since`
    since: float | None = None  # when fewer replicas than the target began to be enough

    def update(self, desired: int, now: float, targets: ScalingTargets) -> "StageTarget":
        """Return the target after another observation.

        It rises at once. It falls when fewer replicas were enough for the downscale delay, and then
        to the maximum that was desired during that delay.
        """
        if desired >= self.replicas:
            return StageTarget(desired)
        if self.since is None:
            return replace(self, max_desired_since=desired, since=now)
        maximum = max(self.max_desired_since, desired)
        if now - self.since < targets.downscale_delay_s:
            return replace(self, max_desired_since=maximum)
        return StageTarget(maximum)


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """Work that arrives per second: an exponentially weighted mean over a time window."""

    per_second: float = 0.0
    began: float | None = None
    at: float = 0.0
    window_s: float = 30.0  # seconds

    def observe(self, work: float, now: float) -> "ArrivalRate":
        """Return the rate after `work` arrived since the last call.

        During the first window it is the plain mean since the first call.
        """
        if self.began is None:
            return replace(self, began=now, at=now)
        elapsed = now - self.at
        if elapsed <= 0:
            return self
        weight = min(1.0, elapsed / min(self.window_s, now - self.began))
        mean = self.per_second + weight * (work / elapsed - self.per_second)
        return replace(self, per_second=mean, at=now)


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """What the autoscaler remembers of all stages from one observation to the next: a value."""

    stage_targets: Mapping[Stage, StageTarget] = field(default_factory=dict)
    arrival_rates: Mapping[Stage, ArrivalRate] = field(default_factory=dict)
    arrived_totals: Mapping[Stage, float] = field(default_factory=dict)  # at the last observation

    def observe(
        self,
        loads: Mapping[Stage, StageLoad],
        now: float,
        targets: ScalingTargets,
        max_total_replicas: int | None = None,
    ) -> "Autoscaler":
        """Return the autoscaler after another observation of all stages.

        `max_total_replicas` is the number of GPUs that the stages share, if it is fixed. A GPU that
        moves to another stage has to load another model. So it moves when that has been fair for
        the downscale delay; or at once, if the other stage has none, or if there are fewer GPUs
        than before.
        """
        desired, rates = {}, {}
        for stage, load in loads.items():
            arrived = load.arrived_total - self.arrived_totals.get(stage, load.arrived_total)
            previous_rate = self.arrival_rates.get(stage, ArrivalRate())
            rates[stage] = rate = previous_rate.observe(max(0.0, arrived), now)
            desired[stage] = desired_replicas(load, rate.per_second, targets)
        previous = {
            stage: self.stage_targets.get(stage, StageTarget(load.replicas))
            for stage, load in loads.items()
        }
        if max_total_replicas is None:
            stage_targets = {
                stage: target.update(desired[stage], now, targets)
                for stage, target in previous.items()
            }
        else:
            minimum = {stage: load.min_replicas for stage, load in loads.items()}
            shares = allocate_gpus(desired, minimum, max_total_replicas)
            stage_targets = _move_towards(shares, previous, now, targets, max_total_replicas)
        arrived_totals = {stage: load.arrived_total for stage, load in loads.items()}
        return Autoscaler(stage_targets, rates, arrived_totals)

    @property
    def targets(self) -> dict[Stage, int]:
        """The number of replicas that each stage should have."""
        return {stage: target.replicas for stage, target in self.stage_targets.items()}


def _move_towards(
    shares: Mapping[Stage, int],
    stage_targets: Mapping[Stage, StageTarget],
    now: float,
    targets: ScalingTargets,
    gpus: int,
) -> dict[Stage, StageTarget]:
    """Return the targets, moved towards fair shares of the GPUs."""
    starving = any(shares[stage] and not target.replicas for stage, target in stage_targets.items())
    if starving or sum(target.replicas for target in stage_targets.values()) > gpus:
        return {stage: StageTarget(share) for stage, share in shares.items()}
    moved = {
        stage: target.update(min(target.replicas, shares[stage]), now, targets)
        for stage, target in stage_targets.items()
    }
    free = gpus - sum(target.replicas for target in moved.values())
    for stage, target in moved.items():
        more = max(0, min(free, shares[stage] - target.replicas))
        if more:
            moved[stage] = StageTarget(target.replicas + more)
            free -= more
    return moved
