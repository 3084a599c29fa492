"""A store behind an event loop: bounded calls, remembered faults, recovery."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from serve_app.core.errors import LedgerBroken, LedgerDamaged, LedgerFault, LedgerInUse
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.ledger_store.async_store import AsyncStore
from serve_app.ledger_store.file_lock import lock_file
from serve_app.ledger_store.sqlite_store import CHECK_INTERVAL_S, SqliteStore
from tests.support.clock import Clock
from tests.support.ledger_stores import JOB, damage_all, damage_page, fill, none_lost
from tests.support.waiting import until_async

FULL = LedgerFault("the ledger's disk is full")


class SickStore(SqliteStore):
    """A store in memory whose reads raise what the test sets, or wait until it lets them go on."""

    def __init__(self) -> None:
        super().__init__(LedgerFile(None))
        self.fault: LedgerFault | None = None
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.calls = 0

    def accepted_terms(self, caller: str) -> str | None:
        self.calls += 1
        self.begun.set()
        self.open.wait()
        if self.fault:
            raise self.fault
        return super().accepted_terms(caller)

    def recover(self) -> None:
        if self.fault:
            raise self.fault


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sick() -> Iterator[SickStore]:
    store = SickStore()
    yield store
    store.open.set()


async def terms(store: AsyncStore) -> str | None:
    return await store.read(lambda kept: kept.accepted_terms("a"))


async def accept(store: AsyncStore) -> None:
    await store.write(lambda kept: kept.accept_terms("a", "terms", 0.0))


async def test_a_fault_is_raised_and_remembered_until_a_write_succeeds(
    sick: SickStore, clock: Clock
) -> None:
    store = AsyncStore(lambda: sick, clock)
    sick.fault = FULL
    for _ in range(2):  # each call tries: another may have room
        with pytest.raises(LedgerFault, match="disk is full"):
            await terms(store)
    assert sick.calls == 2
    assert store.problem == "the ledger's disk is full"
    sick.fault = None
    await accept(store)
    assert store.problem == ""


async def test_a_broken_store_is_left_alone_until_it_recovers(
    sick: SickStore, clock: Clock
) -> None:
    store = AsyncStore(lambda: sick, clock)
    sick.fault = LedgerBroken("the database is away")
    for _ in range(3):
        with pytest.raises(LedgerBroken, match="the database is away"):
            await terms(store)
    assert sick.calls == 1
    sick.fault = None
    clock.now += 2
    await store.maintain()
    assert store.problem == ""
    assert await terms(store) is None


async def test_a_call_that_hangs_is_given_up_and_others_are_refused_at_once(
    sick: SickStore, clock: Clock
) -> None:
    store = AsyncStore(lambda: sick, clock, call_s=0.05)
    sick.open.clear()
    for _ in range(3):
        with pytest.raises(LedgerBroken, match="does not respond"):
            await terms(store)
    assert sick.calls == 1
    clock.now += 2
    await store.maintain()  # the thread still hangs
    assert "does not respond" in store.problem
    sick.open.set()
    await until_recovered(store, clock)
    assert await terms(store) is None


async def test_a_call_that_hangs_does_not_block_the_event_loop(
    sick: SickStore, clock: Clock
) -> None:
    store = AsyncStore(lambda: sick, clock)
    sick.open.clear()
    hanging = asyncio.create_task(terms(store))
    await asyncio.to_thread(sick.begun.wait)
    await accept(store)
    assert not hanging.done()
    sick.open.set()
    assert await hanging in (None, "terms")


async def test_a_store_that_can_not_be_opened_is_opened_later(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "ledger.sqlite"
    first = SqliteStore(LedgerFile(file))
    fill(first)
    first.close()
    damage_all(file)
    store = AsyncStore(lambda: SqliteStore(LedgerFile(file)), clock)
    with pytest.raises(LedgerDamaged):
        await terms(store)
    file.rename(tmp_path / "aside")
    clock.now += 20
    await store.maintain()
    assert store.problem == ""
    assert await terms(store) is None


class SlowOpening:
    """Opens a store on the second try, when the test lets it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tries = 0
        self.open = threading.Event()

    def __call__(self) -> SqliteStore:
        self.tries += 1
        if self.tries == 1:
            raise LedgerBroken("the database is away")
        assert self.open.wait(60)
        return SqliteStore(LedgerFile(self.file), lock_wait_s=0)


async def open_late(folder: Path, clock: Clock) -> tuple[AsyncStore, SlowOpening]:
    """Return a store that has given up to wait until its file is open."""
    opening = SlowOpening(folder / "ledger.sqlite")
    store = AsyncStore(opening, clock, recover_s=0.05)
    clock.now += 2
    await store.maintain()
    return store, opening


async def test_a_store_that_opens_too_late_is_used_with_its_lock(
    tmp_path: Path, clock: Clock
) -> None:
    store, opening = await open_late(tmp_path, clock)
    assert "does not respond" in store.problem
    opening.open.set()
    await until_recovered(store, clock)
    assert opening.tries == 2
    await accept(store)
    store.close()
    SqliteStore(LedgerFile(opening.file), lock_wait_s=0).close()  # the lock is free


async def test_a_store_that_opens_after_the_end_gives_up_its_lock(
    tmp_path: Path, clock: Clock
) -> None:
    store, opening = await open_late(tmp_path, clock)
    store.close()
    opening.open.set()

    def is_free() -> bool:
        with suppress(LedgerInUse):
            SqliteStore(LedgerFile(opening.file), lock_wait_s=0).close()
            return lock_file(opening.file).exists()
        return False

    await until_async(is_free)


class SlowFileStore(SqliteStore):
    """A store in a file whose opening again waits until the test lets it go on."""

    def __init__(self, file: Path) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.open.set()
        super().__init__(LedgerFile(file))

    def _opened_file(self, path: Path) -> sqlite3.Connection:
        self.begun.set()
        assert self.open.wait(60)
        return super()._opened_file(path)


async def test_a_recovery_that_hangs_is_given_up_beside_a_call_and_ends_later(
    tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "ledger.sqlite"
    slow = SlowFileStore(file)
    store = AsyncStore(lambda: slow, clock, call_s=0.05, recover_s=0.2)
    await accept(store)
    remove(file)
    clock.now += CHECK_INTERVAL_S + 1
    await store.maintain()
    assert "was removed" in store.problem
    slow.begun.clear()
    slow.open.clear()
    clock.now += 2
    recovery = asyncio.create_task(store.maintain())
    await asyncio.to_thread(slow.begun.wait)
    for _ in range(2):
        with pytest.raises(LedgerBroken):
            await terms(store)
    await recovery
    assert "does not respond" in store.problem
    with pytest.raises(LedgerBroken, match="does not respond"):
        await terms(store)
    slow.open.set()
    await until_recovered(store, clock)
    await accept(store)
    assert await terms(store) == "terms"
    store.close()


async def test_a_call_that_takes_too_long_beside_a_recovery_is_a_fault_and_nothing_else(
    tmp_path: Path, clock: Clock
) -> None:
    """The fault of a full disk lets calls through, and one of them may hang meanwhile."""
    slow = SlowFileStore(tmp_path / "ledger.sqlite")
    store = AsyncStore(lambda: slow, clock, call_s=0.05, recover_s=10)
    await accept(store)
    slow._db.close()
    with pytest.raises(LedgerFault):
        await accept(store)
    slow.begun.clear()
    slow.open.clear()
    clock.now += 2
    recovery = asyncio.create_task(store.maintain())
    await asyncio.to_thread(slow.begun.wait)
    for _ in range(2):
        with pytest.raises(LedgerFault):
            await store.read(lambda kept: slow.open.wait(1) or kept.accepted_terms("a"))
    slow.open.set()
    await recovery
    await until_recovered(store, clock)
    assert await terms(store) == "terms"
    store.close()


@pytest.mark.parametrize("replaces", [False, True])
async def test_damage_is_found_by_the_regular_check(
    tmp_path: Path, clock: Clock, replaces: bool
) -> None:
    file = tmp_path / "ledger.sqlite"
    store = AsyncStore(lambda: SqliteStore(LedgerFile(file, replaces)), clock)
    await store.write(fill)
    damage_page(file)
    clock.now += CHECK_INTERVAL_S + 1
    await store.maintain()
    assert store.problem == "the ledger's file is damaged"
    clock.now += 20
    await store.maintain()
    if replaces:
        assert store.problem == ""
        assert "begun anew" in store.notice
        await store.write(lambda kept: kept.create(JOB, None, 0.0, none_lost))
    else:
        assert store.problem == "the ledger's file is damaged"
        with pytest.raises(LedgerDamaged):
            await accept(store)


def remove(file: Path) -> None:
    """Remove a ledger's file and what SQLite has beside it; the lock's file stays."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()


async def until_recovered(store: AsyncStore, clock: Clock) -> None:
    while store.problem:
        clock.now += 2
        await store.maintain()
        await asyncio.sleep(0.001)
