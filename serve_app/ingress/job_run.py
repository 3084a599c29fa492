"""`JobRun`: one job that this process works at, and what a stop must know of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serve_app.core.errors import Draining, LedgerAway, Loading
from serve_app.core.service.jobs import OWNER_LOST, IdempotencyClaim, Job, JobError
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.contracts import Maker
from serve_app.ingress.errors import error_response
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_result import publish_progress


async def _is_checked() -> None:
    """Return: the request was checked when it came."""


@dataclass(frozen=True, slots=True, eq=False)
class JobRun:
    """A job at work. Without a claim nobody can ask for it again.

    `check` raises what a newcomer with the same request would be refused with.
    """

    job: Job
    generation: GenerationJob
    tasks: Sequence[ImageTask]
    feed: JobFeed
    claim: IdempotencyClaim | None = None
    spooled: str | None = None  # the id under which the spool has the job that it goes on from
    check: Callable[[], Awaitable[None]] = _is_checked

    def connect(self, maker: Maker) -> None:
        """Let a maker know whether somebody watches, and viewers how far the images are."""

        def watch(watched: bool) -> None:
            for task in self.tasks:
                maker.watch(task.id, watched=watched)

        def refresh() -> None:
            for number, task in enumerate(self.tasks):
                publish_progress(maker, task, number, self.feed.put)

        self.feed.connect(watch, refresh)

    def error(self, failure: Exception) -> JobError:
        """Return how the ledger keeps a failure.

        A job with a claim that comes while the service stops waits for whoever takes it up. So does
        one of the spool that comes before the stages have started, or while the ledger is away.
        """
        comes_too_late = self.claim is not None and isinstance(failure, Draining)
        waits = self.spooled is not None and isinstance(failure, Loading | LedgerAway)
        if comes_too_late or waits:
            return OWNER_LOST
        response = error_response(failure, 0)
        return JobError(response.code, response.message, response.is_final)

    @property
    def ids(self) -> frozenset[str]:
        """The ids under which the spool may have the job: a ledger that lost it gave it another."""
        return frozenset({self.job.id, self.spooled or self.job.id})

    @property
    def is_resumed(self) -> bool:
        """Whether another process has accepted it before."""
        return self.spooled is not None or any(task.is_retaken for task in self.tasks)
