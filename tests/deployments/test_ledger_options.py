"""How long the ledger keeps what callers have set, and that using it costs next to no writes."""

import pytest

from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.ledger import Ledger
from serve_app.ledger_store.sqlite_errors import disk_full
from serve_app.ledger_store.sqlite_store import SqliteStore
from serve_app.ledger_store.store import OPTION_TTL
from serve_app.ledger_store.used_option import RENEWAL_INTERVAL
from tests.support.clock import Clock

DAY = 86_400.0
OPTION = ("key:a", "model")


class CountingStore(SqliteStore):
    """A store in memory that counts renewals, and can refuse them as a full disk does."""

    def __init__(self) -> None:
        super().__init__(LedgerFile(None))
        self.renewals = 0
        self.is_full = False

    def renew_option(self, caller: str, name: str, now: float) -> None:
        self.renewals += 1
        if self.is_full:
            raise disk_full()
        super().renew_option(caller, name, now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def ledger(clock: Clock, store: CountingStore) -> Ledger:
    return Ledger(None, clock, lambda _: store)


async def test_an_option_that_is_used_every_day_is_kept_for_good(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.set_option(*OPTION, "demo")
    for _ in range(int(2 * OPTION_TTL / DAY)):
        clock.now += DAY
        await ledger.check_health()  # which deletes what is too old
        assert await ledger.option(*OPTION) == "demo"
    clock.now += OPTION_TTL + 1
    await ledger.check_health()
    assert await ledger.option(*OPTION) is None


async def test_use_is_written_once_in_a_while_and_not_for_each_request(
    ledger: Ledger, clock: Clock, store: CountingStore
) -> None:
    await ledger.set_option(*OPTION, "demo")
    for _ in range(3):
        await ledger.option(*OPTION)
    assert store.renewals == 0
    clock.now += RENEWAL_INTERVAL + 1
    for _ in range(3):
        await ledger.option(*OPTION)
    assert store.renewals == 1
    assert await ledger.option("key:b", "model") is None
    assert store.renewals == 1


async def test_an_option_is_read_where_its_use_cannot_be_written(
    ledger: Ledger, clock: Clock, store: CountingStore
) -> None:
    await ledger.set_option(*OPTION, "demo")
    clock.now += RENEWAL_INTERVAL + 1
    store.is_full = True
    assert await ledger.option(*OPTION) == "demo"
    store.is_full = False
    assert await ledger.option(*OPTION) == "demo"
    assert store.renewals == 2
