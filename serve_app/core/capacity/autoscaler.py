"""How many replicas each stage should have, by the work it owes: decisions that the service and the
simulator both take. Work is GPU-seconds, so an image of 150 steps counts for what it is.

Knows no replicas, only their numbers; time is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf

from serve_app.core.diffusion.spec import Stage

_SPARE = 0.05  # of a replica: so little that arrives is not worth one more, or the only one


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a stage at one time."""

    replicas: int  # those there are, or are coming
    least: int
    most: int
    images: int  # under way that are here, or are still to come here
    owed: float  # GPU-seconds that they still need here, in full batches
    arrived: float  # GPU-seconds of all that was ever accepted: it only grows
    coming: float = 0.0  # of what is owed, that of images which are on another stage yet


@dataclass(frozen=True, slots=True)
class Aims:
    """What scaling is for."""

    wait: float = 5.0  # seconds in which what is owed now should be done
    busy: float = 0.85  # how much of its time a replica should work, so that few wait
    patience: float = 5.0  # seconds that fewer must have been enough before any goes

    def __post_init__(self) -> None:
        for name, most in (("wait", inf), ("busy", 1.0), ("patience", inf)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most or value == inf:
                told = "above 0" if most == inf else f"above 0 and at most {most:g}"
                raise ValueError(f"{name} must be a number {told}, got {value}")


def replicas_wanted(look: Look, arriving: float, aims: Aims) -> int:
    """Enough to do what is owed within the wait, and what arrives, in GPU-seconds a second, without
    falling behind; and one at least where there are images, even if nobody knows yet what they
    take.

    What is coming from another stage can't be begun, so no replica is idle for it: it counts where
    it arrives, which is when the image is accepted, so that the replica is there when it comes.
    """
    for_queue = (look.owed - look.coming) / aims.wait
    for_flow = arriving / aims.busy - _SPARE
    wanted = max(ceil(max(for_queue, for_flow) - 1e-9), min(1, look.images))
    return min(look.most, max(look.least, wanted))


def share_out(
    wanted: Mapping[Stage, int], least: Mapping[Stage, int], gpus: int
) -> dict[Stage, int]:
    """What each stage gets of a fixed number of GPUs: what it wants where that is enough for all,
    else its least, and of the rest a share by what it wants. Always the whole number of GPUs is
    used up before anybody goes short."""
    if sum(wanted.values()) <= gpus:
        return dict(wanted)
    shares = dict(least)
    for _ in range(gpus - sum(least.values())):
        short = [stage for stage in wanted if shares[stage] < wanted[stage]]
        shares[min(short, key=lambda stage: (shares[stage] / wanted[stage], stage))] += 1
    return shares


@dataclass(frozen=True, slots=True)
class Course:
    """How many replicas a stage has been told to have, and what was enough lately."""

    target: int
    enough: int = 0  # the most that was wanted since `since`
    since: float | None = None  # when fewer than the target began to be enough

    def steered(self, wanted: int, now: float, aims: Aims) -> "Course":
        """The course after another look: up at once, down when fewer were enough for a while, and
        then to the most that was wanted in it."""
        if wanted >= self.target:
            return Course(wanted)
        if self.since is None:
            return replace(self, enough=wanted, since=now)
        enough = max(self.enough, wanted)
        if now - self.since < aims.patience:
            return replace(self, enough=enough)
        return Course(enough)


@dataclass(frozen=True, slots=True)
class Flow:
    """Work that arrives in a second: a mean over some time that leans to what came last."""

    per_second: float = 0.0
    began: float | None = None
    at: float = 0.0
    span: float = 30.0  # seconds

    def seen(self, work: float, now: float) -> "Flow":
        """The flow after so much work since it was last seen: of the first seconds a plain mean."""
        if self.began is None:
            return replace(self, began=now, at=now)
        gone = now - self.at
        if gone <= 0:
            return self
        weight = min(1.0, gone / min(self.span, now - self.began))
        mean = self.per_second + weight * (work / gone - self.per_second)
        return replace(self, per_second=mean, at=now)


@dataclass(frozen=True, slots=True)
class Helm:
    """How the stages are steered, from one look to the next: a value."""

    courses: Mapping[Stage, Course] = field(default_factory=dict)
    flows: Mapping[Stage, Flow] = field(default_factory=dict)
    arrived: Mapping[Stage, float] = field(default_factory=dict)  # as seen last

    def looked(
        self, looks: Mapping[Stage, Look], now: float, aims: Aims, gpus: int | None = None
    ) -> "Helm":
        """The helm after another look at all stages; of a fixed number of `gpus`, if any.

        A model is loaded on a GPU that moves to another stage, so it moves when that was fair for a
        while; or at once, to a stage that has none, and where there are fewer GPUs than before.
        """
        wanted, flows = {}, {}
        for stage, look in looks.items():
            came = max(0.0, look.arrived - self.arrived.get(stage, look.arrived))
            flows[stage] = flow = self.flows.get(stage, Flow()).seen(came, now)
            wanted[stage] = replicas_wanted(look, flow.per_second, aims)
        before = {s: self.courses.get(s, Course(look.replicas)) for s, look in looks.items()}
        if gpus is None:
            courses = {s: course.steered(wanted[s], now, aims) for s, course in before.items()}
        else:
            fair = share_out(wanted, {stage: look.least for stage, look in looks.items()}, gpus)
            courses = _moved(before, fair, now, aims, gpus)
        return Helm(courses, flows, {stage: look.arrived for stage, look in looks.items()})

    @property
    def targets(self) -> dict[Stage, int]:
        """How many replicas each stage should have."""
        return {stage: course.target for stage, course in self.courses.items()}


def _moved(
    courses: Mapping[Stage, Course], fair: Mapping[Stage, int], now: float, aims: Aims, gpus: int
) -> dict[Stage, Course]:
    """The courses, led to fair shares of the GPUs."""
    starving = any(fair[stage] and not course.target for stage, course in courses.items())
    if starving or sum(course.target for course in courses.values()) > gpus:
        return {stage: Course(share) for stage, share in fair.items()}
    moved = {
        stage: course.steered(min(course.target, fair[stage]), now, aims)
        for stage, course in courses.items()
    }
    free = gpus - sum(course.target for course in moved.values())
    for stage, course in moved.items():
        more = max(0, min(free, fair[stage] - course.target))
        if more:
            moved[stage] = Course(course.target + more)
            free -= more
    return moved
