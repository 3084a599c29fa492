from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor
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


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    opened = SpoolFolder(tmp_path / "spool")
    opened.open()
    return opened


@pytest.fixture
def spool(folder: SpoolFolder) -> JobSpool:
    return JobSpool(folder, RERUN_FORMATS, INFO)
