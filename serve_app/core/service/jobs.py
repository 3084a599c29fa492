"""A job: one request as the ledger remembers it, so that its caller can come back to it.

Knows no database and no HTTP. All values; the ledger alone changes what is remembered.
"""

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """What became of a job."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


LOST = ("REPLICA_LOST", "the process that worked at this job is gone; ask again")


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job gave: the PNGs, and what they were made with as the text of a JSON object."""

    pngs: tuple[bytes, ...]
    meta: str
    created: float  # seconds since the epoch, of its job


@dataclass(frozen=True, slots=True)
class Job:
    """One request: whose it is, who works at it, and how it ended."""

    id: str
    caller: str  # a key's or an address's name, never the key
    owner: str  # the process that works at it
    created: float  # seconds since the epoch
    state: JobState = JobState.RUNNING
    error: tuple[str, str] | None = None  # code and sentence, when it failed
    result: JobResult | None = None  # kept for a while after it succeeded


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """A caller's wish that what it sends twice under a key is made once."""

    scope: str  # a digest of caller, route and key
    fingerprint: str  # a digest of the body
    seed: int  # drawn before the first try, so that a second one makes the same bytes


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The ledger's answer to a claim: the job that makes it, with what seed, and whether the
    claimer is the one to make it. `job` is None when the key was used with another body."""

    job: str | None
    seed: int
    is_owner: bool
