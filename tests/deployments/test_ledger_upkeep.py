"""What the ledger does beside its calls: clean-ups, and checks of a store that may be slow."""

import asyncio
import threading
from dataclasses import replace

import pytest

from serve_app.core.service.jobs import Job, JobState, RunningJob
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.ledger import LEASE, Ledger
from serve_app.ledger_store.sqlite_store import SqliteStore
from serve_app.ledger_store.store import MAX_JOB_AGE
from tests.support.ledger_stores import JOB, RESULT
from tests.support.waiting import until_async


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


async def succeed(ledger: Ledger, id: str = JOB.id) -> None:
    await ledger.finish(id, JOB.owner, JobState.SUCCEEDED, None, RESULT)


class SlowReads(SqliteStore):
    """A store in memory whose answers wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__(LedgerFile(None))
        self.open = threading.Event()
        self.begun = threading.Event()
        self.reads = 0  # of the running jobs
        self.open.set()

    def read(self, id: str) -> Job | None:
        job = super().read(id)
        self.begun.set()
        assert self.open.wait(30)
        return job

    def running(self) -> list[RunningJob]:
        running = super().running()
        self.reads += 1
        self.begun.set()
        assert self.open.wait(30)
        return running


async def test_an_end_during_the_read_of_a_waiting_get_is_not_missed(clock: Clock) -> None:
    store = SlowReads()
    ledger = Ledger(None, clock, lambda _: store)
    await ledger.create(JOB, None)
    store.begun.clear()
    store.open.clear()
    waiting = asyncio.create_task(ledger.get(JOB.id, LEASE))
    await asyncio.to_thread(store.begun.wait)
    await succeed(ledger)
    store.open.set()
    async with asyncio.timeout(LEASE / 2):
        job = await waiting
    assert job is not None
    assert job.state is JobState.SUCCEEDED


async def test_a_job_that_comes_during_a_clean_up_can_be_waited_for(clock: Clock) -> None:
    store = SlowReads()
    ledger = Ledger(None, clock, lambda _: store)
    await ledger.create(JOB, None)
    clock.now += 28
    await ledger.heartbeat(JOB.owner, frozenset([JOB.id]), {})
    await ledger.check_health()  # looks for lost jobs
    clock.now += 2  # only the rest of a clean-up is due
    store.begun.clear()
    store.open.clear()
    cleaning = asyncio.create_task(ledger.check_health())
    await asyncio.to_thread(store.begun.wait)
    later = replace(JOB, id="job-2", created=clock.now)
    await ledger.create(later, None)
    waiting = asyncio.create_task(ledger.get(later.id, LEASE))
    await until_async(lambda: later.id in ledger._end_events)
    store.open.set()
    await cleaning
    await until_async(lambda: waiting.done() or later.id in ledger._end_events)
    await succeed(ledger, later.id)
    async with asyncio.timeout(LEASE / 2):
        job = await waiting
    assert job is not None
    assert job.state is JobState.SUCCEEDED


async def test_a_health_check_does_not_wait_for_a_slow_disk_and_starts_no_second_upkeep(
    clock: Clock,
) -> None:
    store = SlowReads()
    ledger = Ledger(None, clock, lambda _: store)
    store.open.clear()
    for _ in range(2):
        async with asyncio.timeout(2.5):
            await ledger.check_health()
        assert store.begun.is_set()
    assert store.reads == 1
    store.open.set()
    await ledger.check_health()


async def test_a_health_check_fails_if_the_upkeep_fails_for_a_reason_without_a_name(
    clock: Clock,
) -> None:
    class Faulty(SqliteStore):
        def running(self) -> list[RunningJob]:
            raise ZeroDivisionError

    ledger = Ledger(None, clock, lambda _: Faulty(LedgerFile(None)))
    with pytest.raises(ZeroDivisionError):
        await ledger.check_health()


async def test_full_buckets_are_forgotten_after_a_while(ledger: Ledger, clock: Clock) -> None:
    limit = RateLimit(rate=1, burst=100)
    await ledger.consume("idle", 10, limit)
    await ledger.consume("indebted", 200, limit)
    clock.now += 60
    await ledger.consume("busy", 10, limit)
    await ledger.check_health()
    assert set(ledger._buckets) == {"indebted", "busy"}
    assert await ledger.consume("idle", 100, limit) == 0


async def test_events_of_deleted_jobs_are_forgotten(ledger: Ledger, clock: Clock) -> None:
    await ledger.create(JOB, None)
    await ledger.get(JOB.id, 0.01)
    assert JOB.id in ledger._end_events
    clock.now += MAX_JOB_AGE + 1
    await ledger.create(replace(JOB, id="other", created=clock.now), None)
    assert not ledger._end_events
