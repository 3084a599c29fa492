"""One PostgreSQL server for all tests of this room, and a schema of its own for each."""

from collections.abc import Iterator
from itertools import count

import pytest

from serve_app.core.service.ledger_place import LedgerDatabase
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
