from collections.abc import AsyncIterator

import pytest

from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.ledgers import WatchedLedger


@pytest.fixture
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def ledger() -> WatchedLedger:
    return WatchedLedger()


@pytest.fixture
async def client(conductor: FakeConductor, ledger: WatchedLedger) -> AsyncIterator[Client]:
    """Make clients over `conductor` and `ledger`, unless a test names others."""
    clients = Client(conductor, ledger)
    yield clients
    await clients.close()
