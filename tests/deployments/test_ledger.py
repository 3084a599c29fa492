"""The ledger on a real database and a clock that the test turns."""

import asyncio
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.service.jobs import IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.ledger import CLAIMED, KEPT, LEASE, LONGEST, Ledger

JOB = Job("job-1", "key:a", "owner-1", created=1000.0)
CLAIM = IdempotencyClaim("scope", "body", seed=7)
RESULT = JobResult((b"png one", b"png 2"), '{"seeds":[7,8]}', JOB.created)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(None, clock)


@pytest.fixture
def reopened(tmp_path: Path, clock: Clock) -> Callable[[], Ledger]:
    """Each call is a ledger that has just started on the same file."""
    return lambda: Ledger(tmp_path / "state" / "ledger.sqlite", clock)


async def succeed(ledger: Ledger, id: str = JOB.id) -> None:
    await ledger.finish(id, JOB.owner, JobState.SUCCEEDED, None, RESULT)


async def test_a_job_is_remembered_with_its_answer(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    assert await ledger.get(JOB.id, 0) == JOB
    await succeed(ledger)
    assert await ledger.get(JOB.id, 0) == replace(JOB, state=JobState.SUCCEEDED, result=RESULT)
    assert await ledger.get("another", 0) is None


async def test_a_job_that_failed_is_remembered_with_its_reason(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    await ledger.finish(JOB.id, JOB.owner, JobState.FAILED, ("OUT_OF_MEMORY", "no room"), None)
    job = await ledger.get(JOB.id, 0)
    assert job == replace(JOB, state=JobState.FAILED, error=("OUT_OF_MEMORY", "no room"))


async def test_an_end_is_final(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    await ledger.finish(JOB.id, JOB.owner, JobState.CANCELLED, None, None)
    await succeed(ledger)
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert job.state is JobState.CANCELLED


async def test_who_waits_for_a_job_is_told_when_it_ends(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    waiting = [asyncio.create_task(ledger.get(JOB.id, 5)) for _ in range(3)]
    await asyncio.sleep(0)
    await succeed(ledger)
    for job in await asyncio.wait_for(asyncio.gather(*waiting), 1):
        assert job is not None
        assert job.result == RESULT


async def test_who_waits_too_long_gets_the_job_as_it_stands(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    assert await ledger.get(JOB.id, 0.01) == JOB


async def test_the_second_claim_is_sent_to_the_first_ones_job(ledger: Ledger) -> None:
    first = await ledger.create(JOB, CLAIM)
    assert (first.job, first.seed, first.is_owner) == (JOB.id, 7, True)
    second = await ledger.create(replace(JOB, id="job-2"), replace(CLAIM, seed=99))
    assert (second.job, second.seed, second.is_owner) == (JOB.id, 7, False)
    await succeed(ledger)
    third = await ledger.create(replace(JOB, id="job-3"), replace(CLAIM, seed=100))
    assert (third.job, third.is_owner) == (JOB.id, False)
    assert await ledger.get("job-2", 0) is None


async def test_a_claim_asked_for_again_by_the_same_job_is_still_its_own(ledger: Ledger) -> None:
    await ledger.create(JOB, CLAIM)
    assert (await ledger.create(JOB, CLAIM)).is_owner


async def test_another_body_under_the_same_key_is_a_conflict(ledger: Ledger) -> None:
    await ledger.create(JOB, CLAIM)
    other = replace(CLAIM, fingerprint="another")
    assert (await ledger.create(replace(JOB, id="job-2"), other)).job is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_a_claim_on_what_did_not_succeed_is_free_again(
    ledger: Ledger, state: JobState
) -> None:
    await ledger.create(JOB, CLAIM)
    await ledger.finish(JOB.id, JOB.owner, state, None, None)
    again = await ledger.create(replace(JOB, id="job-2"), replace(CLAIM, fingerprint="another"))
    assert (again.job, again.is_owner) == ("job-2", True)


async def test_a_job_whose_owner_is_silent_is_lost_and_may_be_made_by_another(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    for _ in range(3):
        clock.now += LEASE
        await ledger.heartbeat(JOB.owner)
    assert (await ledger.get(JOB.id, 0)) == JOB
    clock.now += LEASE + 1
    lost = await ledger.get(JOB.id, 0)
    assert lost is not None
    assert lost.state is JobState.FAILED
    assert lost.error is not None
    assert lost.error[0] == "REPLICA_LOST"
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    taken = await ledger.create(other, replace(CLAIM, seed=99))
    assert (taken.job, taken.seed, taken.is_owner) == (JOB.id, 7, True)
    now = await ledger.get(JOB.id, 0)
    assert now is not None
    assert (now.state, now.owner) == (JobState.RUNNING, "owner-2")


async def test_who_took_a_job_over_and_asks_again_is_told_the_same(
    ledger: Ledger, clock: Clock
) -> None:
    """The answer to the first question was lost on its way."""
    await ledger.create(JOB, CLAIM)
    clock.now += LEASE + 1
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    first = await ledger.create(other, CLAIM)
    assert first.is_owner
    assert await ledger.create(other, CLAIM) == first


async def test_an_owner_that_was_given_up_can_not_end_what_another_took_over(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    clock.now += LEASE + 1
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    await ledger.create(other, CLAIM)
    await ledger.finish(JOB.id, JOB.owner, JobState.FAILED, ("OUT_OF_MEMORY", "no room"), None)
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert job.state is JobState.RUNNING
    assert not (await ledger.create(replace(other, id="job-3"), CLAIM)).is_owner


async def test_a_restarted_ledger_knows_what_it_was_told(
    reopened: Callable[[], Ledger], clock: Clock
) -> None:
    before = reopened()
    await before.create(JOB, CLAIM)
    await before.accept_terms("key:a", "terms")
    await before.create(replace(JOB, id="done"), None)
    await succeed(before, "done")  # and then it dies, with nothing closed
    after = reopened()
    assert await after.accepted_terms("key:a") == "terms"
    done = await after.get("done", 0)
    assert done is not None
    assert done.result == RESULT
    clock.now += LEASE  # nobody can be called dead by who has only just begun to listen
    assert await after.get(JOB.id, 0) == JOB
    assert not (await after.create(replace(JOB, id="job-2"), CLAIM)).is_owner


async def test_nobody_else_may_read_the_books(
    reopened: Callable[[], Ledger], tmp_path: Path
) -> None:
    reopened()
    assert stat.S_IMODE((tmp_path / "state" / "ledger.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_answers_are_kept_for_ten_minutes_and_seeds_for_a_day(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    await succeed(ledger)
    clock.now += KEPT - 1
    await ledger.create(replace(JOB, id="other"), None)
    assert await ledger.get(JOB.id, 0) is not None
    clock.now += 60
    await ledger.create(replace(JOB, id="another", created=clock.now), None)
    assert await ledger.get(JOB.id, 0) is None
    again = await ledger.create(
        replace(JOB, id="job-2", created=clock.now), replace(CLAIM, seed=99)
    )
    assert (again.is_owner, again.seed) == (True, 7)
    clock.now += CLAIMED + LONGEST
    fresh = await ledger.create(
        replace(JOB, id="job-3", created=clock.now), replace(CLAIM, seed=99)
    )
    assert (fresh.job, fresh.seed) == ("job-3", 99)


async def test_answers_take_a_bounded_room_and_the_oldest_go_first(
    clock: Clock,
) -> None:
    ledger = Ledger(None, clock, most_bytes=30)
    for number in range(4):
        clock.now += 1
        job = replace(JOB, id=f"job-{number}", created=clock.now)
        await ledger.create(job, None)
        await succeed(ledger, job.id)
    kept = [await ledger.get(f"job-{number}", 0) for number in range(4)]
    assert [bool(job and job.result) for job in kept] == [False, False, True, True]


async def test_an_allowance_is_each_callers_own(ledger: Ledger, clock: Clock) -> None:
    allowance = RateLimit(rate=1, size=10)
    assert await ledger.consume("a", 10, allowance) == 0
    assert await ledger.consume("a", 5, allowance) == 5
    assert await ledger.consume("b", 5, allowance) == 0
    clock.now += 5
    assert await ledger.consume("a", 5, allowance) == 0
