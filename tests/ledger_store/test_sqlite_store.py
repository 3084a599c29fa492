"""The ledger's file when its disk is full, its bytes are damaged, or it is taken away."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.errors import LedgerBroken, LedgerDamaged, LedgerFault, OperatorError
from serve_app.core.service.jobs import JobResult
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.ledger_store.sqlite_errors import disk_full
from serve_app.ledger_store.sqlite_schema import VERSION
from serve_app.ledger_store.sqlite_store import SqliteStore
from tests.support.ledger_stores import (
    JOB,
    RESULT,
    damage_all,
    damage_page,
    damage_result,
    fill,
    none_lost,
    succeed,
)

Damage = Callable[[Path], None]
NOW = JOB.created


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def test_the_file_and_its_folder_are_private(file: Path) -> None:
    SqliteStore(LedgerFile(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [damage_all, damage_page, damage_result])
def test_a_damaged_file_is_refused_at_start_and_left_as_it_is(file: Path, damage: Damage) -> None:
    fill_and(damage, file)
    before = file.read_bytes()
    with pytest.raises(LedgerDamaged, match="the ledger's file is damaged"):
        SqliteStore(LedgerFile(file))
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", [damage_all, damage_page, damage_result])
def test_a_damaged_file_is_moved_aside_and_begun_anew_where_the_operator_wants(
    file: Path, damage: Damage
) -> None:
    fill_and(damage, file)
    before = file.read_bytes()
    store = SqliteStore(LedgerFile(file, replaces_damaged=True))
    (moved,) = file.parent.glob("ledger.sqlite.damaged-*")
    assert moved.read_bytes() == before
    assert store.notice.startswith("the ledger's file was damaged and begun anew at ")
    assert store.read("kept-1") is None
    fill(store, 1)
    store.check()


@pytest.mark.parametrize("damage", [damage_all, damage_page, damage_result])
def test_a_check_notices_damage_to_a_file_that_is_open(file: Path, damage: Damage) -> None:
    store = SqliteStore(LedgerFile(file))
    fill(store)
    store.check()
    damage(file)
    with pytest.raises(LedgerDamaged):
        store.check()
    with pytest.raises(LedgerDamaged):
        store.recover()


def test_a_damaged_image_is_never_returned(file: Path) -> None:
    fill_and(lambda _: None, file)
    store = SqliteStore(LedgerFile(file))
    damage_result(file)
    with pytest.raises(LedgerDamaged):
        store.read("kept-0")
    assert store.read("kept-1") is not None


class WatchedStore(SqliteStore):
    """Counts how often the file is opened, which reads all of it, and may find the disk full."""

    opened = 0
    is_full = False

    def _opened_file(self, path: Path) -> sqlite3.Connection:
        self.opened += 1
        return super()._opened_file(path)

    def _check_room(self) -> None:
        if self.is_full:
            raise disk_full()


def test_while_the_disk_is_full_nothing_is_read_to_recover(file: Path) -> None:
    store = WatchedStore(LedgerFile(file))
    store.create(JOB, None, NOW, none_lost)
    store.is_full = True
    for _ in range(3):
        with pytest.raises(LedgerFault, match="the ledger's disk is full"):
            store.recover()
    store.is_full = False
    store.recover()
    assert store.opened == 1
    assert store.read(JOB.id) == JOB


def test_a_store_that_is_well_is_not_opened_again_to_recover(file: Path) -> None:
    store = WatchedStore(LedgerFile(file))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerFault, match="another process uses"):
            store.recover()
        other.execute("ROLLBACK")
    store.recover()
    assert store.opened == 1


def test_a_connection_that_died_is_opened_again(file: Path) -> None:
    store = WatchedStore(LedgerFile(file))
    store.create(JOB, None, NOW, none_lost)
    store._db.close()
    with pytest.raises(LedgerFault):
        store.read(JOB.id)
    store.interrupt()  # of a connection that is closed: nothing to do
    store.recover()
    assert (store.opened, store.read(JOB.id)) == (2, JOB)


def test_a_file_that_can_not_be_opened_again_is_read_through_the_connection_of_before(
    file: Path,
) -> None:
    store = SqliteStore(LedgerFile(file))
    fill(store)
    damage_result(file)
    with pytest.raises(LedgerDamaged):
        store.read("kept-0")
    with pytest.raises(LedgerDamaged):
        store.recover()
    assert store.read("kept-1") is not None


def test_a_folder_that_was_removed_is_a_fault_with_a_name(file: Path) -> None:
    store = SqliteStore(LedgerFile(file))
    shutil.rmtree(file.parent)
    for call in (store.check, store.recover):
        with pytest.raises(LedgerFault, match="the ledger's file "):
            call()


def test_a_file_at_its_largest_size_is_named_and_what_is_kept_can_be_read(file: Path) -> None:
    store = SqliteStore(LedgerFile(file), max_bytes=1000)
    store.create(JOB, None, NOW, none_lost)
    succeed(store)
    store.create(replace(JOB, id="large"), None, NOW, none_lost)
    with pytest.raises(LedgerFault, match="the ledger's file is as large as it may be"):
        succeed(store, "large", JobResult((os.urandom(9 << 20),), "{}", NOW))
    job = store.read(JOB.id)
    assert job is not None
    assert job.result == RESULT
    store.recover()
    assert succeed(store, "large")


def test_a_file_that_was_removed_is_noticed_and_begun_anew(file: Path) -> None:
    store = SqliteStore(LedgerFile(file))
    store.create(JOB, None, NOW, none_lost)
    for path in file.parent.iterdir():
        path.unlink()
    with pytest.raises(LedgerBroken, match="was removed"):
        store.check()
    store.recover()
    store.check()
    assert store.read(JOB.id) is None
    assert file.exists()


def test_a_repaired_file_is_used_again(file: Path) -> None:
    store = SqliteStore(LedgerFile(file))
    fill(store)
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = file.read_bytes()
    damage_page(file)
    for call in (store.check, store.recover):
        with pytest.raises(LedgerDamaged):
            call()
    file.write_bytes(backup)
    store.recover()
    assert store.read("kept-3") is not None


def test_a_file_of_the_first_release_is_brought_up_to_date(file: Path) -> None:
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as db:
        db.executescript(
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, caller TEXT, owner TEXT, created REAL,"
            " state TEXT, ended REAL, code TEXT, message TEXT, meta TEXT, pngs BLOB, sizes TEXT);"
            "CREATE TABLE claims (scope TEXT PRIMARY KEY, fingerprint TEXT, seed INTEGER, job TEXT,"
            " created REAL, taker TEXT);"
            "INSERT INTO jobs VALUES ('old', 'a', 'o', 1000, 'succeeded', 1000, NULL, NULL, '{}',"
            " x'706e67', '[3]');"
        )
    store = SqliteStore(LedgerFile(file))
    old = store.read("old")
    assert old is not None
    assert old.result is not None
    assert old.result.pngs == (b"png",)
    store.check()


def test_a_file_of_before_webhooks_is_brought_up_to_date_with_its_jobs(file: Path) -> None:
    store = SqliteStore(LedgerFile(file))
    store.create(JOB, None, JOB.created, none_lost)
    store.close()
    with closing(sqlite3.connect(file)) as db:
        db.executescript(
            "DROP TABLE webhooks; DROP TABLE options; ALTER TABLE jobs DROP COLUMN webhook;"
            " PRAGMA user_version=5;"
        )
    store = SqliteStore(LedgerFile(file))
    assert store.read(JOB.id) == JOB
    assert succeed(store)
    store.create(replace(JOB, id="later", webhook="https://a.example/"), None, 1000.0, none_lost)
    assert succeed(store, "later")
    assert len(store.take_webhooks("https://a.example/", 9, JOB.created + 9).webhooks) == 1
    store.close()


def test_a_file_of_a_newer_release_is_refused(file: Path) -> None:
    SqliteStore(LedgerFile(file)).close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(OperatorError, match=f"has version {VERSION + 1}"):
        SqliteStore(LedgerFile(file))


def test_another_process_that_writes_is_waited_for_and_named(file: Path) -> None:
    store = SqliteStore(LedgerFile(file))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerFault, match="another process uses"):
            store.create(JOB, None, NOW, none_lost)
        other.execute("ROLLBACK")
    store.create(JOB, None, NOW, none_lost)


def fill_and(damage: Damage, file: Path) -> None:
    """Keep jobs in a new file, close it, and damage it."""
    store = SqliteStore(LedgerFile(file))
    fill(store)
    store.close()
    damage(file)
