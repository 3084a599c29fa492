"""What a job that is not worked at means for whoever waited for it."""

from dataclasses import replace

import pytest

from serve_app.core.errors import OutOfMemory, RateLimited
from serve_app.core.service.job_errors import JobCancelled, JobFailed, result_of
from serve_app.core.service.jobs import OWNER_LOST, Job, JobError, JobResult, JobState

JOB = Job("job-1", "key:a", "owner-1", created=1000.0)
RESULT = JobResult((b"png",), "{}", 1000.0)


def test_a_job_that_succeeded_has_its_result() -> None:
    assert result_of(replace(JOB, state=JobState.SUCCEEDED, result=RESULT)) is RESULT


def test_a_cancelled_or_failed_job_raises_what_it_ended_with() -> None:
    with pytest.raises(JobCancelled):
        result_of(replace(JOB, state=JobState.CANCELLED))
    error = JobError(OutOfMemory.code, "no room", final=True)
    with pytest.raises(JobFailed, match="no room") as found:
        result_of(replace(JOB, state=JobState.FAILED, error=error))
    assert (found.value.code, found.value.is_final) == (OutOfMemory.code, True)


@pytest.mark.parametrize("abandoned", [True, False])
def test_a_job_that_another_try_may_make_has_no_result(*, abandoned: bool) -> None:
    error = OWNER_LOST if abandoned else JobError(RateLimited.code, "wait")
    job = replace(JOB, state=JobState.FAILED, error=error, is_abandoned=abandoned)
    assert result_of(job) is None
