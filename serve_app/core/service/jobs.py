"""A job: one request as the ledger keeps it, so that its caller can come back to it.

No database and no HTTP. All are values; only the ledger changes what is kept.
"""

from dataclasses import dataclass
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
