from collections.abc import AsyncIterator

import pytest

from serve_app.deployments.ledger import Ledger
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor


@pytest.fixture
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(None)


@pytest.fixture
async def client(conductor: FakeConductor, ledger: Ledger) -> AsyncIterator[Client]:
    """Make clients over `conductor` and `ledger`, unless a test names others."""
    clients = Client(conductor, ledger)
    yield clients
    await clients.close()
