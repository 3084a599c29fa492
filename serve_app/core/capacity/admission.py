"""Admission: whether a job may wait for its turn, decided from what is owed before it.

The service and the simulator both use this decision. It predicts when a job would be done, as a
fluid that fair sharing serves through the stages. No Ray and no clock: a deadline is the seconds
that are left.

A full queue delays nothing but itself, but a queue in which jobs miss their deadlines makes images
that nobody waits for any more (congestion collapse). So what can't be in time is refused when it
comes, while a refusal still costs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts, served_before
from serve_app.core.capacity.open_requests import has_room
from serve_app.core.diffusion.spec import Stage

# Predicted waits are off by some share, and a job that comes late is worth nothing: so a deadline
# needs room for a wait that is longer by this share.
_WAIT_MARGIN = 0.1
# The share of the predicted seconds that an image is sure to take. A prediction may be too long,
# and what is given up because of it would have been in time.
OPTIMISM = 0.8
_ROUNDING = 1e-6  # seconds by which sums in another order may differ


class Refusal(StrEnum):
    """Why a job is refused."""

    OPEN_REQUESTS = "open_requests"  # there are too many jobs, in all or of its caller
    QUEUE = "queue"  # it would have to wait longer than anybody may
    DEADLINE = "deadline"  # it would be late because of the others
    LOADING = "loading"  # it would be late because its model has to be loaded first
    IMPOSSIBLE = "impossible_deadline"  # it would be late even in an idle service


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The bounds of the queue."""

    queue_seconds: float = 120.0  # that others' work and loading may delay a job
    open_requests: int = 256  # jobs in the whole service

    def __post_init__(self) -> None:
        if self.open_requests < 1:
            raise ValueError(f"at least one request must be open at a time, got {self}")


@dataclass(frozen=True, slots=True)
class StageQueue:
    """What the replicas of a stage, or those of both stages together, still have to do.

    `earlier` is the part of the newcomer's own caller that goes before the newcomer.
    """

    replicas: int = 1
    batch_images: int = 1  # that step together
    images: int = 0  # accepted, and not done with the stage
    owed: Amounts = field(default_factory=dict)  # GPU-seconds in full batches, by caller
    earlier: float = 0.0  # GPU-seconds, likewise
    loading: float = 0.0  # seconds that each replica needs to load others' models

    @property
    def places(self) -> int:
        """The images that can step at the same time."""
        return max(1, self.replicas) * self.batch_images

    @property
    def drain_seconds(self) -> float:
        """Seconds until everything that is owed is done."""
        return sum(self.owed.values()) / max(1, self.replicas)

    def wait(self, work: "StageWork", caller: Caller) -> float:
        """Return the seconds until a caller's new work begins: none while there are free places."""
        if self._has_places(work):
            return 0.0
        before = served_before(self.owed, caller, self.earlier, work.amortized)
        return before / max(1, self.replicas) + self.loading

    def own_wait(self, work: "StageWork") -> float:
        """Return the seconds that the caller's new work would wait if nobody else had any."""
        return 0.0 if self._has_places(work) else self.earlier / max(1, self.replicas)

    def without(self, work: "StageWork", caller: Caller) -> "StageQueue":
        """Return the queue as one of the caller's images, which is in it, finds it."""
        others = max(0.0, self.owed.get(caller, 0.0) - work.amortized)
        return replace(
            self,
            images=max(0, self.images - work.images),
            owed={**self.owed, caller: others},
            earlier=max(0.0, self.earlier - work.amortized),
        )

    def image_seconds(self, work: "StageWork", newcomers: int) -> float:
        """Return the seconds of an image from its turn on, beside what is here and `newcomers`.

        Each further image of a batch lengthens its steps by as much, until what is owed is done.
        """
        together = ceil((self.images + newcomers) / max(1, self.replicas))
        further = min(together, self.batch_images) - 1
        if further <= 0:
            return work.isolated
        longer = (work.batched - work.isolated) * further / (self.batch_images - 1)
        others = self.drain_seconds + work.amortized / max(1, self.replicas)
        return work.isolated + min(longer, others)

    def _has_places(self, work: "StageWork") -> bool:
        return not self.images or self.images + work.images <= self.places


@dataclass(frozen=True, slots=True)
class StageWork:
    """The work of a job's images at one stage."""

    stage: Stage  # or the first of two that share their replicas
    images: int
    amortized: float  # GPU-seconds of all images, in full batches
    isolated: float  # seconds of the longest image on an idle replica
    batched: float  # and on one that steps full batches


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A job at the door: all its images are admitted, or none."""

    caller: Caller
    works: Sequence[StageWork]  # in the order of the stages; empty while nothing is known of costs
    seconds_left: float | None = None  # until its deadline
    loading: float = 0.0  # seconds to load its own models, where no replica has them


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a job is admitted, and the prediction behind that, in seconds."""

    refusal: Refusal | None  # None: it is admitted
    wait: float = 0.0  # for others, and for what its caller sent before
    others: float = 0.0  # the part of it that is others' work and loading
    own: float = 0.0  # of the job itself beside others, with the loading of its models
    alone: float = 0.0  # likewise, in an idle service
    fits_in: float = 0.0  # until a refused job would fit, if nobody else came
    service_seconds: float = 0.0  # of the whole service that the job takes


def decide(
    newcomer: Newcomer,
    queues: Mapping[Stage, StageQueue],
    open_requests: Amounts,
    limits: AdmissionLimits,
) -> Decision:
    """Return whether a job is admitted beside what is owed at each stage.

    `open_requests` are the numbers of open jobs, by caller. A job that finds nothing owed is
    refused only if its deadline is impossible, or if too many requests are open. What its own
    caller sent before counts only against its deadline.
    """
    own = _own_seconds(newcomer.works, queues) + newcomer.loading
    idle = {stage: replace(queue, images=0, owed={}) for stage, queue in queues.items()}
    alone = _own_seconds(newcomer.works, idle) + newcomer.loading
    sure = _least_seconds(newcomer.works, queues)
    images = [queues[work.stage].image_seconds(work, work.images) for work in newcomer.works]
    waits = [queues[work.stage].wait(work, newcomer.caller) for work in newcomer.works]
    own_waits = [queues[work.stage].own_wait(work) for work in newcomer.works]
    wait = _finish(images, waits) - sum(images)
    others = wait - (_finish(images, own_waits) - sum(images))
    seconds = max(
        (work.amortized / max(1, queues[work.stage].replicas) for work in newcomer.works),
        default=0.0,
    )
    has_company = any(queues[work.stage].images for work in newcomer.works)
    refusal, fits_in = None, 0.0
    left = newcomer.seconds_left
    if left is not None and left < OPTIMISM * sure:
        refusal = Refusal.IMPOSSIBLE
    elif left is not None and left < OPTIMISM * (sure + newcomer.loading):
        refusal = Refusal.LOADING
    elif not has_room(open_requests, newcomer.caller, limits.open_requests):
        refusal, fits_in = Refusal.OPEN_REQUESTS, _seconds_per_job(queues, open_requests)
    elif others > limits.queue_seconds:  # while it shrinks, the caller's own work is done too
        refusal, fits_in = Refusal.QUEUE, (others - limits.queue_seconds) * wait / others
    elif left is not None and wait and left < own + wait * (1 + _WAIT_MARGIN):
        refusal, fits_in = Refusal.DEADLINE, wait - max(0.0, left - own) / (1 + _WAIT_MARGIN)
    elif left is not None and has_company and left < OPTIMISM * own:
        refusal, fits_in = Refusal.DEADLINE, _seconds_per_job(queues, open_requests)
    return Decision(refusal, wait, others, own, alone, fits_in, seconds)


def preview(
    caller: Caller,
    stages: Sequence[Stage],
    queues: Mapping[Stage, StageQueue],
    open_requests: Amounts,
    limits: AdmissionLimits,
    seconds_left: float | None = None,
) -> Decision:
    """Return a refusal that `decide` would repeat for every job of the caller that passes `stages`.

    These are in order, one or two of them, or none while nothing is known of costs. The job's work
    is unknown, and the queues are as they are to one that is due at once. What is not refused may
    still be by `decide`, which also says what is late already.
    """
    if seconds_left is not None and seconds_left < 0:
        return Decision(None)
    works = [StageWork(stage, 1, 0.0, 0.0, 0.0) for stage in stages]
    waits = [queues[work.stage].wait(work, caller) for work in works]
    own_waits = [queues[work.stage].own_wait(work) for work in works]
    others = [wait - own for wait, own in zip(waits, own_waits, strict=True)]
    # Work of the job at its first stage may hide the wait for the second one, of others' work or of
    # its caller's own: what is left of the others' is the least that any such work leaves.
    wait = waits[0] if waits else 0.0
    least = others[0] if others else 0.0
    if len(works) > 1:
        last = queues[works[1].stage]
        own = sum(amount for other, amount in last.owed.items() if other.name == caller.name)
        least = min(least, max(others[1], wait - own / max(1, last.replicas)))
    refusal, fits_in = None, 0.0
    if not has_room(open_requests, caller, limits.open_requests):
        refusal, fits_in = Refusal.OPEN_REQUESTS, _seconds_per_job(queues, open_requests)
    elif least > limits.queue_seconds + _ROUNDING:
        refusal, fits_in = Refusal.QUEUE, (least - limits.queue_seconds) * wait / least
    elif seconds_left is not None and seconds_left < wait * (1 + _WAIT_MARGIN) - _ROUNDING:
        refusal, fits_in = Refusal.DEADLINE, wait - max(0.0, seconds_left) / (1 + _WAIT_MARGIN)
    return Decision(refusal, wait, least, fits_in=fits_in)


def expected_seconds(
    works: Sequence[StageWork], queues: Mapping[Stage, StageQueue], caller: Caller
) -> tuple[float, float]:
    """Return the seconds until an accepted image begins, and those until it is done."""
    found = [(queues[work.stage].without(work, caller), work) for work in works]
    images = [queue.image_seconds(work, work.images) for queue, work in found]
    waits = [queue.wait(work, caller) for queue, work in found]
    finish = _finish(images, waits)
    return max(0.0, finish - sum(images)), finish


def latest_start(deadline: float, seconds_left: float) -> float:
    """Return the time after which an image that still waits is given up: it can't be in time.

    `seconds_left` is what it takes from its turn on. One that has begun is never given up by this:
    it is finished before others begin.
    """
    return deadline - OPTIMISM * seconds_left


def _finish(own: Sequence[float], waits: Sequence[float]) -> float:
    """Return the seconds until a job of one batch is done, if each stage first has others to do.

    `own` are its seconds at each stage. Work at a later stage goes on while the job is at an
    earlier one.
    """
    finish = 0.0
    for seconds, wait in zip(own, waits, strict=True):
        finish = max(finish, wait) + seconds
    return finish


def _own_seconds(works: Sequence[StageWork], queues: Mapping[Stage, StageQueue]) -> float:
    """Return the seconds that a job takes once others no longer delay it.

    Its images pass one stage after the other, and several batches of them follow each other at the
    slowest stage.
    """
    longest = total = 0.0
    for work in works:
        queue = queues[work.stage]
        image = queue.image_seconds(work, work.images)
        amortized = work.amortized / max(1, queue.replicas)
        seconds = max(amortized, ceil(work.images / queue.places) * image)
        longest, total = max(longest, seconds - image), total + image
    return total + longest


def _least_seconds(works: Sequence[StageWork], queues: Mapping[Stage, StageQueue]) -> float:
    """Return the seconds that a job takes at least, as if images could be divided ever so finely.

    The service is idle but for it.
    """
    longest = total = 0.0
    for work in works:
        seconds = work.amortized / max(1, queues[work.stage].replicas)
        longest, total = max(longest, seconds - work.isolated), total + work.isolated
    return total + longest


def _seconds_per_job(queues: Mapping[Stage, StageQueue], open_requests: Amounts) -> float:
    """Return the mean seconds until one of the open jobs is done."""
    seconds = max((queue.drain_seconds for queue in queues.values()), default=0.0)
    return seconds / max(1, sum(open_requests.values()))
