"""The ledger on a real database, and on a clock that the test sets."""

import asyncio
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.service.jobs import (
    OWNER_LOST,
    IdempotencyClaim,
    Job,
    JobError,
    JobResult,
    JobState,
)
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.ledger import DISOWNED_AFTER, LEASE, Ledger
from serve_app.ledger_store.store import CLAIM_TTL, MAX_JOB_AGE, RESULT_TTL
from tests.support.clock import Clock
from tests.support.waiting import until_async

JOB = Job("job-1", "key:a", "owner-1", created=1000.0)
CLAIM = IdempotencyClaim("scope", "body", seed=7)
RESULT = JobResult((b"png one", b"png 2"), '{"seeds":[7,8]}', JOB.created)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(None, clock)


@pytest.fixture
def reopened(tmp_path: Path, clock: Clock) -> Callable[[], Ledger]:
    """Return a function that starts a ledger on the same file."""
    return lambda: Ledger(LedgerFile(tmp_path / "state" / "ledger.sqlite"), clock)


async def succeed(ledger: Ledger, id: str = JOB.id) -> None:
    await ledger.finish(id, JOB.owner, JobState.SUCCEEDED, None, RESULT)


async def test_a_job_is_kept_with_its_result(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    assert await ledger.get(JOB.id, 0) == JOB
    await succeed(ledger)
    assert await ledger.get(JOB.id, 0) == replace(JOB, state=JobState.SUCCEEDED, result=RESULT)
    assert await ledger.get("another", 0) is None


async def test_a_failed_job_is_kept_with_its_error(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    await ledger.finish(
        JOB.id, JOB.owner, JobState.FAILED, JobError("OUT_OF_MEMORY", "no room"), None
    )
    job = await ledger.get(JOB.id, 0)
    assert job == replace(JOB, state=JobState.FAILED, error=JobError("OUT_OF_MEMORY", "no room"))


async def test_an_end_is_final(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    await ledger.finish(JOB.id, JOB.owner, JobState.CANCELLED, None, None)
    await succeed(ledger)
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert job.state is JobState.CANCELLED


async def test_a_waiting_get_returns_when_the_job_ends(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    waiting = [asyncio.create_task(ledger.get(JOB.id, 5)) for _ in range(3)]
    await until_async(lambda: JOB.id in ledger._end_events)
    await succeed(ledger)
    for job in await asyncio.wait_for(asyncio.gather(*waiting), 1):
        assert job is not None
        assert job.result == RESULT


async def test_a_wait_that_is_over_returns_the_running_job(ledger: Ledger) -> None:
    await ledger.create(JOB, None)
    assert await ledger.get(JOB.id, 0.01) == JOB


async def test_the_second_claim_gets_the_job_of_the_first(ledger: Ledger) -> None:
    first = await ledger.create(JOB, CLAIM)
    assert (first.job, first.seed, first.is_owner) == (JOB.id, 7, True)
    second = await ledger.create(replace(JOB, id="job-2"), replace(CLAIM, seed=99))
    assert (second.job, second.seed, second.is_owner) == (JOB.id, 7, False)
    await succeed(ledger)
    third = await ledger.create(replace(JOB, id="job-3"), replace(CLAIM, seed=100))
    assert (third.job, third.is_owner) == (JOB.id, False)
    assert await ledger.get("job-2", 0) is None


async def test_a_job_that_claims_twice_is_still_the_owner(ledger: Ledger) -> None:
    await ledger.create(JOB, CLAIM)
    assert (await ledger.create(JOB, CLAIM)).is_owner


async def test_another_body_under_the_same_key_is_a_conflict(ledger: Ledger) -> None:
    await ledger.create(JOB, CLAIM)
    other = replace(CLAIM, fingerprint="another")
    assert (await ledger.create(replace(JOB, id="job-2"), other)).job is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_a_claim_on_a_job_that_did_not_succeed_is_free_again(
    ledger: Ledger, state: JobState
) -> None:
    await ledger.create(JOB, CLAIM)
    await ledger.finish(JOB.id, JOB.owner, state, None, None)
    again = await ledger.create(replace(JOB, id="job-2"), replace(CLAIM, fingerprint="another"))
    assert (again.job, again.is_owner) == ("job-2", True)


async def test_a_job_whose_owner_is_silent_is_lost_and_may_be_taken_over(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    for _ in range(3):
        clock.now += LEASE
        await ledger.heartbeat(JOB.owner, frozenset({JOB.id}), {})
    assert (await ledger.get(JOB.id, 0)) == JOB
    clock.now += LEASE + 1
    lost = await ledger.get(JOB.id, 0)
    assert lost is not None
    assert lost.state is JobState.FAILED
    assert lost.error is not None
    assert lost.error.code == "REPLICA_LOST"
    assert lost.is_abandoned
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    taken = await ledger.create(other, replace(CLAIM, seed=99))
    assert (taken.job, taken.seed, taken.is_owner) == (JOB.id, 7, True)
    now = await ledger.get(JOB.id, 0)
    assert now is not None
    assert (now.state, now.owner) == (JobState.RUNNING, "owner-2")


async def test_a_job_that_its_living_owner_does_not_list_is_lost(
    ledger: Ledger, clock: Clock
) -> None:
    """The response to its claim did not arrive, or its end."""
    await ledger.create(JOB, CLAIM)
    clock.now += DISOWNED_AFTER
    await ledger.heartbeat(JOB.owner, frozenset({"another"}), {})
    assert await ledger.get(JOB.id, 0) == JOB
    clock.now += 1
    lost = await ledger.get(JOB.id, 0)
    assert lost is not None
    assert lost.is_abandoned
    assert (await ledger.create(replace(JOB, id="job-2", created=clock.now), CLAIM)).is_owner


async def test_a_job_that_its_owner_gives_up_is_taken_over_at_once_with_its_id_and_seed(
    ledger: Ledger,
) -> None:
    await ledger.create(JOB, CLAIM)
    waiting = asyncio.ensure_future(ledger.get(JOB.id, 5))
    await asyncio.sleep(0)
    await ledger.finish(JOB.id, JOB.owner, JobState.FAILED, OWNER_LOST, None)
    given_up = await waiting
    assert given_up is not None
    assert (given_up.is_abandoned, given_up.error) == (True, OWNER_LOST)
    taker = replace(JOB, id="job-2", owner="owner-2")
    claimed = await ledger.create(taker, replace(CLAIM, seed=8))
    assert (claimed.job, claimed.seed, claimed.is_owner) == (JOB.id, CLAIM.seed, True)
    await ledger.finish(JOB.id, JOB.owner, JobState.FAILED, OWNER_LOST, None)  # too late
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert (job.state, job.owner) == (JobState.RUNNING, "owner-2")


async def test_who_waits_for_a_lost_job_is_woken(ledger: Ledger, clock: Clock) -> None:
    await ledger.create(JOB, CLAIM)
    waiting = asyncio.create_task(ledger.get(JOB.id, 5))
    await until_async(lambda: JOB.id in ledger._end_events)
    clock.now += LEASE + 1
    await ledger.check_health()
    job = await asyncio.wait_for(waiting, 1)
    assert job is not None
    assert job.is_abandoned


async def test_an_owner_that_was_only_slow_may_still_finish_its_job(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    clock.now += LEASE + 1
    await ledger.check_health()
    await succeed(ledger)
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert job.result == RESULT
    assert not (await ledger.create(replace(JOB, id="job-2"), CLAIM)).is_owner


async def test_a_new_owner_that_claims_twice_gets_the_same_result(
    ledger: Ledger, clock: Clock
) -> None:
    """The response to the first call was lost."""
    await ledger.create(JOB, CLAIM)
    clock.now += LEASE + 1
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    first = await ledger.create(other, CLAIM)
    assert first.is_owner
    assert await ledger.create(other, CLAIM) == first


async def test_an_owner_presumed_dead_can_not_finish_a_job_that_was_taken_over(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    clock.now += LEASE + 1
    other = Job("job-2", JOB.caller, "owner-2", clock.now)
    await ledger.create(other, CLAIM)
    await ledger.finish(
        JOB.id, JOB.owner, JobState.FAILED, JobError("OUT_OF_MEMORY", "no room"), None
    )
    job = await ledger.get(JOB.id, 0)
    assert job is not None
    assert job.state is JobState.RUNNING
    assert not (await ledger.create(replace(other, id="job-3"), CLAIM)).is_owner


async def test_a_restarted_ledger_has_kept_everything(
    reopened: Callable[[], Ledger], clock: Clock
) -> None:
    first = reopened()
    await first.create(JOB, CLAIM)
    await first.accept_terms("key:a", "terms")
    await first.create(replace(JOB, id="done"), None)
    await succeed(first, "done")
    first.close()
    second = reopened()
    assert await second.accepted_terms("key:a") == "terms"
    done = await second.get("done", 0)
    assert done is not None
    assert done.result == RESULT
    clock.now += LEASE  # no owner is dead before a lease since the start is over
    assert await second.get(JOB.id, 0) == JOB
    assert not (await second.create(replace(JOB, id="job-2"), CLAIM)).is_owner


async def test_the_ledger_s_file_is_private(reopened: Callable[[], Ledger], tmp_path: Path) -> None:
    reopened()
    assert stat.S_IMODE((tmp_path / "state" / "ledger.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_results_are_kept_for_ten_minutes_and_seeds_for_a_day(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.create(JOB, CLAIM)
    await succeed(ledger)
    clock.now += RESULT_TTL - 1
    await ledger.create(replace(JOB, id="other"), None)
    assert await ledger.get(JOB.id, 0) is not None
    clock.now += 60
    await ledger.create(replace(JOB, id="another", created=clock.now), None)
    assert await ledger.get(JOB.id, 0) is None
    again = await ledger.create(
        replace(JOB, id="job-2", created=clock.now), replace(CLAIM, seed=99)
    )
    assert (again.is_owner, again.seed) == (True, 7)
    clock.now += CLAIM_TTL + MAX_JOB_AGE
    fresh = await ledger.create(
        replace(JOB, id="job-3", created=clock.now), replace(CLAIM, seed=99)
    )
    assert (fresh.job, fresh.seed) == ("job-3", 99)


async def test_each_caller_has_a_rate_limit_of_its_own(ledger: Ledger, clock: Clock) -> None:
    limit = RateLimit(rate=1, burst=10)
    assert await ledger.consume("a", 10, limit) == 0
    assert await ledger.consume("a", 5, limit) == 5
    assert await ledger.consume("b", 5, limit) == 0
    clock.now += 5
    assert await ledger.consume("a", 5, limit) == 0


async def test_each_owner_gets_the_loads_of_the_others_that_still_send_them() -> None:
    now = 100.0
    ledger = Ledger(clock=lambda: now)
    assert await ledger.heartbeat("a", frozenset(), {"jobs": 1}) == []
    assert await ledger.heartbeat("b", frozenset(), {"jobs": 2}) == [{"jobs": 1}]
    now += 1
    assert await ledger.heartbeat("a", frozenset(), {"jobs": 3}) == [{"jobs": 2}]
    now += 3
    assert await ledger.heartbeat("b", frozenset(), {"jobs": 4}) == [{"jobs": 3}]
    now += 3
    assert await ledger.heartbeat("a", frozenset(), {"jobs": 5}) == [{"jobs": 4}]
    now += 4
    assert await ledger.heartbeat("b", frozenset(), {"jobs": 6}) == []
