"""What a claim that is kept means for the next request with its key."""

from dataclasses import replace

import pytest

from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobState,
    KeptClaim,
    KeptJob,
    RunningJob,
    Takeover,
    decide_claim,
)

FIRST = Job("job-1", "key:a", "owner-1", created=1000.0)
AGAIN = Job("job-2", "key:a", "owner-2", created=1020.0)
CLAIM = IdempotencyClaim("scope", "body", seed=99)
KEPT = KeptClaim("body", 7, FIRST.id, taker=FIRST.id)
RUNNING = KeptJob(RunningJob(FIRST.id, FIRST.owner, FIRST.created), JobState.RUNNING, False)


def decide(
    kept_job: KeptJob | None = RUNNING,
    job: Job = AGAIN,
    claim: IdempotencyClaim = CLAIM,
    *,
    is_lost: bool = False,
) -> ClaimResult | Takeover:
    return decide_claim(job, claim, KEPT, lambda: kept_job, lambda _: is_lost)


def test_a_job_has_ended_when_nobody_works_at_it_nor_may_take_it_over() -> None:
    assert not FIRST.has_ended
    assert replace(FIRST, state=JobState.CANCELLED).has_ended
    assert not replace(FIRST, state=JobState.FAILED, is_abandoned=True).has_ended


def test_jobs_stand_in_the_order_in_which_they_were_created() -> None:
    same_time = replace(FIRST, id="job-0")
    jobs = sorted([AGAIN, FIRST, same_time], key=lambda job: job.place)
    assert jobs == [same_time, FIRST, AGAIN]


def test_the_same_call_again_is_the_owner_s_whatever_else_changed() -> None:
    other = replace(CLAIM, fingerprint="another")
    assert decide(job=FIRST, claim=other) == ClaimResult(FIRST.id, 7, is_owner=True)


def test_another_body_under_the_same_key_is_a_conflict() -> None:
    other = replace(CLAIM, fingerprint="another")
    assert decide(claim=other) == ClaimResult(None, 0, is_owner=False)


@pytest.mark.parametrize(
    ("kept_job", "is_lost"),
    [
        (RUNNING, False),
        (replace(RUNNING, state=JobState.SUCCEEDED, has_result=True), True),
    ],
    ids=["worked at", "made"],
)
def test_a_job_that_is_worked_at_or_made_is_joined(kept_job: KeptJob, is_lost: bool) -> None:
    assert decide(kept_job, is_lost=is_lost) == ClaimResult(FIRST.id, 7, is_owner=False)


@pytest.mark.parametrize(
    ("kept_job", "is_lost"),
    [(RUNNING, True), (replace(RUNNING, state="abandoned"), False), (None, False)],
    ids=["lost", "abandoned", "deleted"],
)
def test_a_job_that_nobody_works_at_is_taken_over_under_its_id_and_seed(
    kept_job: KeptJob | None, is_lost: bool
) -> None:
    takeover = decide(kept_job, is_lost=is_lost)
    assert takeover == Takeover(replace(AGAIN, id=FIRST.id), 7)
    assert isinstance(takeover, Takeover)
    assert takeover.result == ClaimResult(FIRST.id, 7, is_owner=True)
