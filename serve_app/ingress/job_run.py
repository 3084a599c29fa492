"""`JobRun`: one job that this process works at, and what a stop must know of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serve_app.core.service.jobs import IdempotencyClaim, Job
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.job_feed import JobFeed


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

    @property
    def ids(self) -> frozenset[str]:
        """The ids under which the spool may have the job: a ledger that lost it gave it another."""
        return frozenset({self.job.id, self.spooled or self.job.id})

    @property
    def is_resumed(self) -> bool:
        """Whether another process has accepted it before."""
        return self.spooled is not None or any(task.is_retaken for task in self.tasks)
