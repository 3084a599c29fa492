"""`LedgerStore`: what the ledger keeps beyond its own process, as a contract.

All methods block, and raise `LedgerFault` for what is wrong with a disk or a server. Each is one
transaction. Times are seconds since the epoch, by the ledger's clock.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

from serve_app.core.service.jobs import (
    OWNER_LOST,
    ClaimResult,
    IdempotencyClaim,
    IsLost,
    Job,
    JobError,
    JobFilter,
    JobResult,
    JobState,
    RunningJob,
)
from serve_app.core.service.webhooks import DueWebhooks

logger = logging.getLogger("aura.ledger")

RESULT_TTL = 600.0  # seconds that a finished job and its result are kept
CLAIM_TTL = 86_400.0  # seconds that a key keeps its seed, and so its bytes
OPTION_TTL = 30 * 86_400.0  # seconds that an option is kept after its last use
MAX_OPTIONS = 10_000
MAX_JOB_AGE = 7200.0  # seconds, after which any job is deleted: every deadline is earlier
MAX_BYTES = 512 * 2**20  # of results; the oldest are deleted first
LOCK_WAIT_S = 20.0  # seconds to wait for the lock: the process of before a redeploy may have it
FAILED_FOR_GOOD = "failed for good"  # the state of a row whose error is final
ABANDONED = "abandoned"  # the state of a row whose owner is gone; a taker-over makes it run again


@dataclass(frozen=True, slots=True)
class KeptOption:
    """What a caller has set, and when that was set or last renewed."""

    value: str
    renewed: float


class LedgerStore(Protocol):
    """The durable part of the ledger."""

    def create(
        self, job: Job, claim: IdempotencyClaim | None, now: float, is_lost: IsLost
    ) -> ClaimResult:
        """Keep a job; with a claim, only if no living job has the claim already.

        A claim's job that failed or is lost is taken over, under its own id and seed.
        """

    def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
        now: float,
    ) -> bool:
        """Keep how the owner's job ended; return False if it is not the owner's any more.

        A claim on a job that did not succeed is free again. Results beyond the store's bytes are
        deleted, the oldest first; their jobs stay.
        """

    def read(self, id: str) -> Job | None:
        """Return a job as it is kept; None if there is none."""

    def has_result(self, id: str) -> bool:
        """Return whether a job's images are kept, without reading them."""

    def find(self, wanted: JobFilter) -> list[Job]:
        """Return jobs of a caller, newest first, without their results."""

    def running(self) -> list[RunningJob]:
        """Return the jobs that are not known to have ended."""

    def abandon(self, jobs: Collection[RunningJob], now: float) -> None:
        """Keep that nobody works at these jobs any more, unless others own them; claims stay."""

    def accept_terms(self, caller: str, terms: str, now: float) -> None:
        """Keep that the caller has accepted the terms with this digest."""

    def accepted_terms(self, caller: str) -> str | None:
        """Return the digest of the terms that the caller accepted last."""

    def take_webhooks(self, url: str, limit: int, now: float) -> DueWebhooks:
        """Return webhooks that are to be tried now, counting the try; for a lease nobody else is.

        Those of jobs that have ended or are abandoned, the oldest first. One whose last try was
        never settled is deleted.
        """

    def settle_webhook(self, id: str, due: float | None) -> None:
        """Keep when a webhook is to be tried again; None deletes it: delivered, or given up."""

    def secret(self, name: str, fresh: bytes) -> bytes:
        """Return the secret of a name, which is `fresh` if none was kept before."""

    def set_option(self, caller: str, name: str, value: str, now: float) -> None:
        """Keep what the caller has set for its own requests, for some weeks.

        Beyond the most that are kept, those are dropped that were not renewed for longest.
        """

    def option(self, caller: str, name: str) -> KeptOption | None:
        """Return what the caller has set; None without it."""

    def renew_option(self, caller: str, name: str, now: float) -> None:
        """Keep what the caller has set for as long as if it were set now, if it is kept still."""

    def use(self, caller: str, day: str, cost: float, quota: float) -> bool:
        """Add to what the caller has used on a day, unless the sum would be above the quota.

        Return whether it was added. A negative cost gives back, down to nothing used.
        """

    def delete_old(self, now: float) -> None:
        """Delete what is older than the constants of this module say."""

    def recover(self) -> None:
        """Try to get over a fault: open again what is broken, and write something. Or raise."""

    def check(self) -> None:
        """Read through what is kept, in bounded time and beside other calls; raise if damaged."""

    @property
    def notice(self) -> str:
        """What the operator should know about this store, "" if nothing."""

    @property
    def check_interval_s(self) -> float:
        """Seconds between two calls of `check`."""

    def interrupt(self) -> None:
        """End the calls that run, as far as that is possible; may be called in any thread."""

    def close(self) -> None:
        """Give up the store, and the lock on it."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The columns of how a job ended, as both implementations have them."""

    state: str
    code: str | None = None
    message: str | None = None
    meta: str | None = None
    pngs: bytes | None = None  # one after the other
    sizes: list[int] | None = None  # bytes of each


def end_of_job(state: JobState, error: JobError | None, result: JobResult | None) -> JobEnd:
    """Return the columns for an error, or for a result."""
    if error is not None:
        return JobEnd(FAILED_FOR_GOOD if error.final else str(state), error.code, error.message)
    if result is None:
        return JobEnd(str(state))
    sizes = [len(png) for png in result.pngs]
    return JobEnd(str(state), meta=result.meta, pngs=b"".join(result.pngs), sizes=sizes)


def job_of_row(
    id: str,
    caller: str,
    owner: str,
    created: float,
    state: str,
    code: str | None,
    message: str | None,
    result: JobResult | None = None,
) -> Job:
    """Return the job that a row of either implementation stands for."""
    if state == ABANDONED:
        return abandoned(Job(id, caller, owner, created))
    is_final = state == FAILED_FOR_GOOD
    state = JobState.FAILED if is_final else state
    error = JobError(code, message or "", is_final) if code else None
    return Job(id, caller, owner, created, JobState(state), error, result)


def states_of_rows(state: JobState | None) -> tuple[str, ...]:
    """Return the states of rows whose jobs are in a state; all of them for None."""
    if state is JobState.FAILED:
        return str(state), FAILED_FOR_GOOD, ABANDONED
    return (*map(str, JobState), FAILED_FOR_GOOD, ABANDONED) if state is None else (str(state),)


def abandoned(job: Job) -> Job:
    """Return a running job as one whose owner is gone."""
    return replace(job, state=JobState.FAILED, error=OWNER_LOST, is_abandoned=True)


def log_dropped(webhooks: int, reason: str) -> None:
    """Log that webhooks are deleted that were not delivered, if there are any."""
    if webhooks > 0:
        logger.warning("%d webhooks are dropped: %s", webhooks, reason)


def split(pngs: bytes, sizes: Collection[int]) -> tuple[bytes, ...]:
    """Return the images of a row, which stand one after the other."""
    return tuple(pngs[a:b] for a, b in pairwise(accumulate(sizes, initial=0)))
