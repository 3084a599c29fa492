"""A job: one request as the ledger keeps it, so that its caller can come back to it.

No database and no HTTP. All are values; only the ledger changes what is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from serve_app.core.errors import ReplicaLost


class JobState(StrEnum):
    """Whether a job is worked at, or how it ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: the stable code of the error, and a sentence."""

    code: str
    message: str
    final: bool = False  # sending the request again can't help


OWNER_LOST = JobError(
    ReplicaLost.code, "the process that worked at this job is gone; send the request again"
)


@dataclass(frozen=True, slots=True)
class JobResult:
    """The PNGs of a job, and what they were made with, as the text of a JSON object."""

    pngs: tuple[bytes, ...]
    meta: str
    created: float  # seconds since the epoch, of its job


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its caller, the process that works at it, and how it ended."""

    id: str
    caller: str  # the name of a key or an address, never the key
    owner: str  # the process that works at it
    created: float  # seconds since the epoch
    state: JobState = JobState.RUNNING
    error: JobError | None = None  # if it failed
    result: JobResult | None = None  # kept for a while after it succeeded
    is_abandoned: bool = False  # its owner is gone, so another process may run it
    webhook: str | None = None  # the receiver that is told of its end

    @property
    def place(self) -> "JobPlace":
        """Where it stands among its caller's jobs."""
        return JobPlace(self.created, self.id)

    @property
    def as_running(self) -> "RunningJob":
        """What the store knows of it while it runs."""
        return RunningJob(self.id, self.owner, self.created)

    @property
    def has_ended(self) -> bool:
        """Whether nobody works at it any more, nor may take it over."""
        return self.state is not JobState.RUNNING and not self.is_abandoned


@dataclass(frozen=True, slots=True, order=True)
class JobPlace:
    """Where a job stands among those of its caller: by when it was created."""

    created: float  # seconds since the epoch
    id: str


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs of a caller are listed, newest first; none with its result."""

    caller: str
    state: JobState | None = None  # None: of any
    before: JobPlace | None = None  # only those older than this one
    limit: int = 20


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """An `Idempotency-Key`: what a caller sends twice under it is made once."""

    scope: str  # a digest of caller, route and key
    fingerprint: str  # a digest of the body
    seed: int  # drawn before the first try, so that a second try makes the same bytes


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The job that a claim stands for, its seed, and whether the claimer is to work at it.

    `job` is None when the key was used with another body.
    """

    job: str | None
    seed: int
    is_owner: bool


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that is worked at, as far as the store knows."""

    id: str
    owner: str
    created: float


IsLost = Callable[[RunningJob], bool]  # whether nobody works at a running job any more


@dataclass(frozen=True, slots=True)
class KeptClaim:
    """A claim that a store has: of the first try of its body."""

    fingerprint: str
    seed: int
    job: str
    taker: str  # the id of the request whose try owns the job now


@dataclass(frozen=True, slots=True)
class KeptJob:
    """What decides about a claim's job, without its images."""

    running: RunningJob
    state: str
    has_result: bool

    def is_of_use(self, is_lost: IsLost) -> bool:
        """Return whether the job has its result, or somebody works at it."""
        is_running = self.state == JobState.RUNNING
        return self.has_result or (is_running and not is_lost(self.running))


@dataclass(frozen=True, slots=True)
class Takeover:
    """The claimer is to work at a job that nobody works at any more: `job` takes its place."""

    job: Job
    seed: int

    @property
    def result(self) -> ClaimResult:
        """Return what the claimer gets."""
        return ClaimResult(self.job.id, self.seed, is_owner=True)


def decide_claim(
    job: Job,
    claim: IdempotencyClaim,
    kept: KeptClaim,
    kept_job: Callable[[], KeptJob | None],
    is_lost: IsLost,
) -> ClaimResult | Takeover:
    """Return what a claim that is kept already means for a job that comes with the same key.

    `kept_job` reads the claim's job, and is called only if that matters.
    """
    if kept.taker == job.id:  # the same call again: its response was lost
        return ClaimResult(kept.job, kept.seed, is_owner=True)
    if kept.fingerprint != claim.fingerprint:
        return ClaimResult(None, 0, is_owner=False)
    existing = kept_job()
    if existing is not None and existing.is_of_use(is_lost):
        return ClaimResult(kept.job, kept.seed, is_owner=False)
    return Takeover(replace(job, id=kept.job), kept.seed)
