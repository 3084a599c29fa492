"""`AdmissionControl`: the state behind admission, of one ingress process or of a simulation.

It adds up what was accepted here and what the other ingress processes say that they accepted, and
asks `admission.decide`. No clock: times are arguments, in seconds of any one clock.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.admission import (
    AdmissionLimits,
    Decision,
    Newcomer,
    Refusal,
    StageQueue,
    StageWork,
    decide,
    expected_seconds,
    preview,
)
from serve_app.core.capacity.fair_share import Amounts, total
from serve_app.core.capacity.ingress_load import IngressLoad, sum_of
from serve_app.core.capacity.owed_work import OwedWork
from serve_app.core.capacity.virtual_queue import VirtualQueue
from serve_app.core.diffusion.spec import Stage

EXCHANGE_INTERVAL_S = 1.0  # between two exchanges of loads, while there are jobs
# Seconds of the whole service that a job is taken for while nothing was measured: some number, so
# that those who are refused come back one after the other and not all at once.
_ASSUMED_JOB_S = 1.0
_MAX_MISSED = 3  # exchanges in a row that may fail before the others' load counts as unknown


@dataclass(frozen=True, slots=True)
class StageCapacity:
    """The replicas of a stage, as known at one time."""

    replicas: int = 1
    batch_images: int = 1  # that step together on one
    loading: float = 0.0  # seconds to load the models that others wait for


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, and what a refused caller is told."""

    decision: Decision
    retry_after: int = 0  # seconds; 0 where nothing is to be tried again

    @property
    def refusal(self) -> Refusal | None:
        """Why the job is refused; None if it is admitted."""
        return self.decision.refusal


class AdmissionControl:
    """The jobs that were accepted, those that were sent away, and what other processes have.

    Its owner is the only writer. Images are counted in `owed`.
    """

    def __init__(self, stages: Collection[Stage], limits: AdmissionLimits) -> None:
        self.owed = OwedWork(stages)
        self.limits = limits
        self._jobs: dict[Caller, int] = {}  # accepted here, and not ended
        self._stages = stages
        self._sent_away = VirtualQueue()
        self._others = IngressLoad()
        self._others_count = 0
        self._others_at = 0.0
        self._jobs_then: dict[Caller, int] = {}  # accepted here, when the others' were known

    @property
    def jobs(self) -> int:
        """The jobs that were accepted here, and have not ended."""
        return sum(self._jobs.values())

    def begin_job(self, caller: Caller) -> None:
        """Count a job as accepted."""
        self._jobs[caller] = self._jobs.get(caller, 0) + 1

    def end_job(self, caller: Caller) -> None:
        """Count a job that was accepted as ended."""
        self._jobs[caller] -= 1
        if not self._jobs[caller]:
            del self._jobs[caller]

    def judge(
        self,
        caller: Caller,
        works: Iterable[StageWork],
        due: float,
        deadline: float | None,
        capacities: Mapping[Stage, StageCapacity],
        now: float,
        loading: float = 0.0,
    ) -> Verdict:
        """Return whether a job is admitted; book one that is sent away, to come back later.

        `due` is when the job's longest image would be done in full batches. `deadline` is when all
        must be done. `loading` are the seconds to load the job's own models.
        """
        others = self.others(now)
        left = None if deadline is None else deadline - now
        queues = self._queues(caller, due, capacities, others)
        newcomer = Newcomer(caller, tuple(works), left, loading)
        decision = decide(newcomer, queues, self._open_requests(now), self.limits)
        return self._verdict(caller, decision, capacities, now)

    def seconds_from_turn(
        self, works: Iterable[StageWork], capacities: Mapping[Stage, StageCapacity], now: float
    ) -> float:
        """Return what an accepted image takes when it no longer waits, beside what is there."""
        others, seconds = self.others(now), 0.0
        for work in works:
            stage, capacity = work.stage, capacities.get(work.stage, StageCapacity())
            queue = StageQueue(
                capacity.replicas,
                capacity.batch_images,
                self.owed.images(stage) + others.images.get(stage, 0),
                {NO_CALLER: self._owed_seconds(stage, others)},
            )
            seconds += queue.image_seconds(work, newcomers=0)
        return seconds

    def expected_seconds(
        self,
        caller: Caller,
        works: Sequence[StageWork],
        due: float,
        capacities: Mapping[Stage, StageCapacity],
        now: float,
    ) -> tuple[float, float]:
        """Return the seconds until an accepted image begins, and those until it is done."""
        queues = self._queues(caller, due, capacities, self.others(now))
        return expected_seconds(works, queues, caller)

    def preview(
        self,
        caller: Caller,
        stages: Sequence[Stage],
        deadline: float | None,
        capacities: Mapping[Stage, StageCapacity],
        now: float,
    ) -> Verdict:
        """Return whether `judge` might admit a job that passes the stages; book one sent away.

        `stages` is empty while nothing is known of costs. The capacities are the best that a job
        may find.
        """
        others = self.others(now)
        left = None if deadline is None else deadline - now
        queues = self._queues(caller, now, capacities, others)
        jobs = self._open_requests(now)
        decision = preview(caller, stages, queues, jobs, self.limits, left)
        return self._verdict(caller, decision, capacities, now)

    def send_away(
        self, caller: Caller, capacities: Mapping[Stage, StageCapacity], now: float
    ) -> int:
        """Book a request that is refused before its job is known; return its Retry-After."""
        seconds = self._mean_job_seconds(capacities, now)
        return self._book(caller, seconds, seconds, now)

    def load(self, now: float) -> IngressLoad:
        """Return what was accepted here, for the other processes."""
        self._sent_away = self._sent_away.drain(now, self._others.sent_away)
        return IngressLoad(
            dict(self._jobs),
            {stage: self.owed.images(stage) for stage in self._stages},
            {stage: dict(self.owed.by_caller(stage)) for stage in self._stages},
            self._sent_away.booked,
        )

    def update_others(self, loads: Collection[IngressLoad], now: float) -> None:
        """Take note of what each of the other ingress processes has accepted."""
        self._others, self._others_count, self._others_at = sum_of(loads), len(loads), now
        self._jobs_then = dict(self._jobs)

    def others(self, now: float) -> IngressLoad:
        """Return what the other processes have accepted.

        If that has not been known for some seconds, each is believed to have as much as this one.
        """
        if now - self._others_at <= _MAX_MISSED * EXCHANGE_INTERVAL_S or not self._others_count:
            return self._others
        return self.load(now).scaled(self._others_count)

    def drain_seconds(self, capacities: Mapping[Stage, StageCapacity], now: float) -> float:
        """Return the seconds until everything that was accepted is done."""
        others = self.others(now)
        return max(
            self._owed_seconds(stage, others)
            / max(1, capacities.get(stage, StageCapacity()).replicas)
            for stage in self._stages
        )

    def _owed_seconds(self, stage: Stage, others: IngressLoad) -> float:
        return self.owed.total(stage) + sum(others.owed.get(stage, {}).values())

    def _open_requests(self, now: float) -> Amounts:
        """Return the numbers of jobs that are open in all processes, by caller.

        Each of the others is believed to have accepted as many as this process since theirs were
        known: a flood comes to all of them at once, and would else fill the places several times.
        """
        others = self.others(now)
        if others is not self._others:
            return total(self._jobs, others.jobs)
        growth = {
            caller: self._others_count * more
            for caller, number in self._jobs.items()
            if (more := number - self._jobs_then.get(caller, 0)) > 0
        }
        return total(self._jobs, others.jobs, growth)

    def _verdict(
        self,
        caller: Caller,
        decision: Decision,
        capacities: Mapping[Stage, StageCapacity],
        now: float,
    ) -> Verdict:
        if decision.refusal in (None, Refusal.IMPOSSIBLE, Refusal.LOADING):
            return Verdict(decision)
        seconds = decision.service_seconds or self._mean_job_seconds(capacities, now)
        return Verdict(decision, self._book(caller, seconds, decision.fits_in, now))

    def _book(self, caller: Caller, seconds: float, fits_in: float, now: float) -> int:
        """Book a job of so many seconds of the whole service; return its Retry-After."""
        others = self.others(now).sent_away
        self._sent_away, retry_after = self._sent_away.drain(now, others).book(
            caller, seconds, fits_in, others, self.limits.queue_seconds
        )
        return retry_after

    def _mean_job_seconds(self, capacities: Mapping[Stage, StageCapacity], now: float) -> float:
        """Return the seconds of the whole service that a job takes, going by those that are open.

        Where nothing is known of what they take, they are a guess.
        """
        jobs = self.jobs + sum(self.others(now).jobs.values())
        owed = self.drain_seconds(capacities, now)
        return owed / jobs if jobs and owed else _ASSUMED_JOB_S

    def _queues(
        self,
        caller: Caller,
        due: float,
        capacities: Mapping[Stage, StageCapacity],
        others: IngressLoad,
    ) -> dict[Stage, StageQueue]:
        return {
            stage: self._queue(stage, caller, due, capacities.get(stage, StageCapacity()), others)
            for stage in self._stages
        }

    def _queue(
        self,
        stage: Stage,
        caller: Caller,
        due: float,
        capacity: StageCapacity,
        others: IngressLoad,
    ) -> StageQueue:
        owed = others.owed.get(stage, {})
        return StageQueue(
            replicas=capacity.replicas,
            batch_images=capacity.batch_images,
            images=self.owed.images(stage) + others.images.get(stage, 0),
            owed=total(self.owed.by_caller(stage), owed) if owed else self.owed.by_caller(stage),
            earlier=self.owed.earlier(stage, caller, due) + owed.get(caller, 0.0),
            loading=capacity.loading,
        )
