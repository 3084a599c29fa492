"""What the ingress needs of others, as contracts: a maker of images and a ledger of jobs.

`app.py` hands in the real ones, and tests hand in doubles that keep the same promises.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from serve_app.core.service.events import ImageEvent
from serve_app.core.service.info import Health
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask


class Maker(Protocol):
    """What turns a task into an image, as a stream of events."""

    def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        """Stream the events of one image, at last `Generated`; raise named errors.

        Closing the stream cancels the image.
        """

    async def health(self) -> Health:
        """Return whether an image could be made now."""

    def owed_seconds(self) -> float:
        """Return the predicted seconds of the work in flight."""


class Ledger(Protocol):
    """Who remembers. Every method raises `LedgerAway` when it can't be asked."""

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """The job is remembered; with a claim, only if no other job has the claim already."""

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: tuple[str, str] | None,
        result: JobResult | None,
    ) -> None:
        """How the owner's job ended is remembered; a claim on one that failed is free again."""

    async def get(self, id: str, wait: float) -> Job | None:
        """The job, as soon as it has ended or after `wait` seconds; None when there is none."""

    async def heartbeat(self, owner: str) -> None:
        """The owner's jobs are still worked at."""

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """0 when the cost was taken from the caller's allowance, else the seconds to wait."""

    async def accept_terms(self, caller: str, terms: str) -> None:
        """The caller has accepted the terms with this digest."""

    async def accepted_terms(self, caller: str) -> str | None:
        """The digest of the terms that the caller accepted last."""
