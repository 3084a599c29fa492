"""Each kind of store, over one PostgreSQL server with a schema of its own for each test."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile
from serve_app.ledger_store.postgres_store import PostgresStore
from serve_app.ledger_store.sqlite_store import SqliteStore
from serve_app.ledger_store.store import LedgerStore
from tests.support.ledger_stores import KINDS, Opening
from tests.support.postgres import PostgresServer, postgres_programs

_NUMBERS = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer(postgres_programs())
    yield server
    server.remove()


@pytest.fixture
def database(postgres: PostgresServer) -> LedgerDatabase:
    return LedgerDatabase(postgres.url, f"aura_{next(_NUMBERS)}")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opening(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Opening:
    """Return what opens the same store each time; only memory is another one."""
    if kind == "postgresql":
        database: LedgerDatabase = request.getfixturevalue("database")
        return lambda max_bytes: PostgresStore(database, max_bytes)
    file = LedgerFile(None if kind == "memory" else tmp_path / "ledger.sqlite")
    return lambda max_bytes: SqliteStore(file, max_bytes)


@pytest.fixture
def store(opening: Opening) -> Iterator[LedgerStore]:
    store = opening(1000)
    yield store
    store.close()
