"""The ledger's database when it is killed, suspended or refused; and what is never shown."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from serve_app.core.errors import LedgerBroken, LedgerFault, OperatorError
from serve_app.core.service.jobs import JobState
from serve_app.core.service.ledger_place import LedgerDatabase
from serve_app.deployments.ledger import Ledger
from serve_app.ledger_store.opening import check_place, open_store
from serve_app.ledger_store.postgres_check import is_encrypted_or_local, server_name
from serve_app.ledger_store.postgres_schema import VERSION
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.job_requests import KEY, post
from tests.support.ledger_stores import CLAIM, JOB, none_lost
from tests.support.postgres import PostgresServer
from tests.support.waiting import first_match

NOW, FAILED = JOB.created, JobState.FAILED


@pytest.fixture
async def ledger(database: LedgerDatabase) -> AsyncIterator[Ledger]:
    ledger = Ledger(database)
    yield ledger
    ledger.close()


async def test_calls_learn_of_a_killed_database_at_once_and_nothing_is_made_twice(
    ledger: Ledger, postgres: PostgresServer
) -> None:
    conductor = FakeConductor()
    client = Client(conductor, ledger)
    http = client()
    first = await post(http, **KEY)
    assert first.status_code == 201
    await client.drain()
    calls = len(conductor.calls)
    postgres.kill()
    try:
        for _ in range(3):
            refused = await post(http, **KEY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "LEDGER_UNAVAILABLE"
            assert "s3cret" not in refused.text
            assert str(postgres.port) not in refused.text
        assert len(conductor.calls) == calls
        assert (await post(http)).status_code == 201
        health = (await http.get("/health")).json()
        assert (health["status"], health["reason"]) == (
            "degraded",
            "the ledger's database can't be reached",
        )
    finally:
        postgres.start()
    calls = len(conductor.calls)

    async def status() -> str:
        await ledger.check_health()
        return str((await http.get("/health")).json()["status"])

    await first_match(status, lambda status: status == "ready")
    again = await post(http, **KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len(conductor.calls) == calls
    await client.close()


async def test_a_value_that_postgresql_can_not_keep_is_no_fault_of_the_server(
    ledger: Ledger,
) -> None:
    client = Client(FakeConductor(), ledger)
    http = client()
    assert (await http.get("/jobs/%00")).status_code == 404
    with pytest.raises(ValueError, match="the ledger can't keep this value"):
        await ledger.get("a\0b", 0)
    with pytest.raises(ValueError, match="the ledger can't keep this value"):
        await ledger.accept_terms("a\0b", "terms")
    assert (await http.get("/health")).json()["status"] == "ready"
    await client.close()


def test_a_restarted_database_is_reached_again_without_an_error(
    database: LedgerDatabase, postgres: PostgresServer
) -> None:
    store = open_store(database)
    store.create(JOB, None, NOW, none_lost)
    postgres.kill()
    postgres.start()
    assert store.read(JOB.id) == JOB
    with pytest.raises(LedgerBroken, match="can't be reached"):
        store.check()  # the lock was lost with its connection
    store.recover()
    store.check()
    store.close()


@pytest.mark.long
def test_a_database_that_hangs_ends_a_call_in_bounded_time(
    database: LedgerDatabase, postgres: PostgresServer
) -> None:
    """Asserted is only that it ends: the test's own limit is far longer."""
    ledger = Ledger(database)
    postgres.suspend()
    try:
        with pytest.raises(LedgerBroken, match=r"does not respond|can't be reached"):
            asyncio.run(ledger.accepted_terms("a"))
    finally:
        postgres.resume()
    ledger.close()


@pytest.mark.long
def test_a_statement_that_waits_for_a_lock_is_ended(database: LedgerDatabase) -> None:
    store = open_store(database)
    store.create(JOB, None, NOW, none_lost)
    with psycopg.connect(database.url) as other:
        other.execute(SQL("LOCK TABLE {}.jobs").format(Identifier(database.schema)))
        with pytest.raises(LedgerFault, match="takes too long"):
            store.read(JOB.id)
    assert store.read(JOB.id) == JOB
    store.close()


def test_claims_that_come_together_have_one_owner(database: LedgerDatabase) -> None:
    store = open_store(database)
    jobs = [replace(JOB, id=f"job-{number}") for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda job: store.create(job, CLAIM, NOW, none_lost), jobs))
    owners = [result for result in results if result.is_owner]
    assert len(owners) == 1
    assert {result.job for result in results} == {owners[0].job}
    store.close()


def test_ends_and_takeovers_that_cross_do_not_block_each_other(database: LedgerDatabase) -> None:
    store = open_store(database)
    with ThreadPoolExecutor(4) as threads:
        for number in range(20):
            claim = replace(CLAIM, scope=f"scope-{number}")
            job = replace(JOB, id=f"job-{number}")
            store.create(job, claim, NOW, none_lost)
            other = replace(JOB, id=f"other-{number}", owner="owner-2")
            taken = threads.submit(store.create, other, claim, NOW, lambda _: True)
            ended = threads.submit(store.finish, job.id, job.owner, FAILED, None, None, NOW)
            assert taken.result().is_owner != ended.result() or taken.result().job == other.id
    store.close()


def test_tables_of_a_newer_release_are_refused(database: LedgerDatabase) -> None:
    open_store(database).close()
    with psycopg.connect(database.url) as other:
        schema = Identifier(database.schema)
        other.execute(SQL("INSERT INTO {}.version VALUES (%s)").format(schema), (VERSION + 1,))
    with pytest.raises(OperatorError, match=f"has version {VERSION + 1}"):
        open_store(database)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://aura:s3cret@127.0.0.1:1/x", "127.0.0.1:1/x"),
        ("postgresql://aura:s3cret@127.0.0.1:{port}/missing", "does not exist"),
        ("postgresql://aura:s3cret@127.0.0.1:{port}/x?sslmode=wrong", "sslmode"),
        ("postgresql://aura:s3cret@127.0.0.1:{port}/x?no=such", "can't be read as the address"),
    ],
)
def test_a_database_that_can_not_be_used_is_named_without_the_password(
    postgres: PostgresServer, url: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = LedgerDatabase(url.format(port=postgres.port))
    with pytest.raises(OperatorError, match="LEDGER_URL") as error:
        check_place(place, 0)
    assert problem in str(error.value)
    with caplog.at_level(logging.DEBUG), pytest.raises((LedgerFault, OperatorError)) as opened:
        open_store(place)
    for text in (str(error.value), str(opened.value), caplog.text, repr(place)):
        assert "s3cret" not in text


def test_a_missing_driver_is_named_with_the_command_that_installs_it() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from serve_app.core.service.ledger_place import LedgerDatabase\n"
        "from serve_app.ledger_store.opening import check_place, open_store\n"
        "for call in (lambda place: check_place(place, 0), open_store):\n"
        "    try: call(LedgerDatabase('postgresql://h/d'))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    line = (
        "OperatorError LEDGER_URL needs psycopg, which is not installed. "
        "pip install 'aura-serve[postgres]'"
    )
    assert run.stdout.splitlines() == [line, line]


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("postgresql://u:p@localhost/d", True),
        ("postgresql://u:p@127.0.0.1/d", True),
        ("postgresql://u:p@[::1]/d", True),
        ("postgresql:///d?host=/run/postgresql", True),
        ("postgresql://u:p@db.example/d", False),
        ("postgresql://u:p@db.example/d?sslmode=prefer", False),
        ("postgresql://u:p@db.example/d?sslmode=require", True),
        ("postgresql://u:p@127.0.0.1,10.0.0.5/d", False),
    ],
)
def test_encryption_is_demanded_off_this_machine(url: str, is_safe: bool) -> None:
    assert is_encrypted_or_local(LedgerDatabase(url)) == is_safe


def test_a_server_is_named_without_its_user() -> None:
    assert server_name(LedgerDatabase("postgresql://u:p@db.example:5433/d")) == "db.example:5433/d"
