"""The ways a call about a job, or one that waits for a job, can fail."""

from serve_app.core.errors import AuraError, CallerError, RateLimited
from serve_app.core.service.jobs import Job, JobResult, JobState


class JobNotFound(CallerError):
    """No job of this caller has the id; another caller's job looks the same."""

    code = "NOT_FOUND"


class JobCancelled(CallerError):
    """The job was cancelled by its owner while this call waited for it."""

    code = "CANCELLED"
    is_final = True


class JobFailed(AuraError):
    """The job that this call waited for has failed, with that job's own code and message."""

    def __init__(self, code: str, problem: str, *, is_final: bool = False) -> None:
        super().__init__(problem)
        self.code = code
        self.is_final = is_final


def result_of(job: Job) -> JobResult | None:
    """Return the result of a job that is not worked at; None if it must be made again.

    Raises `JobCancelled`, or `JobFailed`.
    """
    if job.state is JobState.CANCELLED:
        raise JobCancelled("the job was cancelled")
    if job.error and not (job.is_abandoned or job.error.code == RateLimited.code):
        raise JobFailed(job.error.code, job.error.message, is_final=job.error.final)
    return job.result
