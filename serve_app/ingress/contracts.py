"""What the ingress needs of others, as contracts: a maker of images and a ledger of jobs.

`app.py` hands in the real ones, and tests hand in doubles that keep the same promises.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from serve_app.core.caller import Caller
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.service.events import ImageEvent
from serve_app.core.service.info import Health, LedgerHealth
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobError,
    JobFilter,
    JobResult,
    JobState,
)
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageSnapshot, ImageTask
from serve_app.core.service.webhooks import DueWebhooks


class Maker(Protocol):
    """What turns a task into an image, as a stream of events."""

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        """Admit the images of a job together; until the context ends, each may be run once.

        Raises named errors: among them `Overloaded`, and `DeadlineExceeded` for a deadline that
        can't be met. A refused job leaves nothing behind.
        """

    def check_room(self, caller: Caller, spec: ImageSpec, deadline: float | None) -> None:
        """Return if a job of the caller might be admitted whose input images are not known yet.

        Raises `Draining`, or `Overloaded` for a job that would be refused whatever it takes. Its
        images have the `spec` but for what their input images decide: size and prompt. `deadline`
        is when it must be done, in the event loop's time.
        """

    def send_away(self, caller: Caller) -> int:
        """Take note of a request that is refused before its job is known.

        Returns the seconds after which it should be sent again.
        """

    def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        """Stream the events of one image, at last `Generated`; raise named errors.

        Closing the stream cancels the image.
        """

    def snapshot(self, id: str) -> ImageSnapshot | None:
        """Return an admitted image as of its last snapshot; None if there is no such image."""

    def outlook(self, id: str) -> Outlook | None:
        """Return how far an admitted image is, and when it will be done; None if there is none."""

    def watch(self, id: str, *, watched: bool) -> None:
        """Let an admitted image have previews and frequent progress, or no longer.

        Nothing happens to an image that is not there, or of which there can't be previews.
        """

    async def health(self) -> Health:
        """Return whether an image could be made now."""

    def owed_seconds(self) -> float:
        """Return the predicted seconds until all that was admitted is done."""

    def load(self) -> Mapping[str, Any]:
        """Return what was admitted here, in plain values for the other ingress processes."""

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """Take note of what each of the other ingress processes has admitted."""


class Ledger(Protocol):
    """The memory of jobs. Every method but `health` raises `LedgerAway` if it can't be reached.

    It raises `LedgerFault`, which is one, if its disk or its database does not work.
    """

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """Keep a job; with a claim, only if no other job has the claim already."""

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """Keep how the owner's job ended; the claim on a job that failed is free again."""

    async def get(self, id: str, wait: float) -> Job | None:
        """Return the job, once it has ended or after `wait` seconds; None if there is none."""

    async def has_result(self, id: str) -> bool:
        """Return whether a job's images are kept."""

    async def find(self, wanted: JobFilter) -> Sequence[Job]:
        """Return jobs of a caller, newest first, without their results."""

    async def heartbeat(
        self, owner: str, jobs: frozenset[str], load: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Any]]:
        """Note that the owner still works, at which jobs, and its load; return the others' loads.

        A load is what `Maker.load` returns.
        """

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """Take the cost from the caller's bucket and return 0, or return the seconds to wait."""

    async def use(self, caller: str, cost: float, quota: float) -> float:
        """Add to what the caller has used today and return 0, or return the seconds to wait."""

    async def accept_terms(self, caller: str, terms: str) -> None:
        """Keep that the caller has accepted the terms with this digest."""

    async def accepted_terms(self, caller: str) -> str | None:
        """Return the digest of the terms that the caller accepted last."""

    async def set_option(self, caller: str, name: str, value: str) -> None:
        """Keep what the caller has set for its own requests, for some weeks."""

    async def option(self, caller: str, name: str) -> str | None:
        """Return what the caller has set; None without it."""

    async def secret(self, name: str) -> bytes:
        """Return the secret of a name, which all processes share and nobody else knows."""

    async def take_webhooks(self, url: str, limit: int) -> DueWebhooks:
        """Return the webhooks of a receiver that the caller is to try now, at most so many."""

    async def settle_webhook(self, id: str, retry_in: float | None) -> None:
        """Keep that a webhook is to be tried again after some seconds; None: never."""

    async def health(self) -> LedgerHealth:
        """Return what is wrong with the ledger. Raises nothing."""
