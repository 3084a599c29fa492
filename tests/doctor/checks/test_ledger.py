"""What doctor says of ledgers that are damaged, in use, or in a database."""

from pathlib import Path

import pytest

from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile
from serve_app.doctor.checks.ledger import check_ledger
from serve_app.doctor.finding import Verdict
from serve_app.ledger_store.opening import open_store
from serve_app.ledger_store.sqlite_store import SqliteStore
from tests.support.ledger_stores import damage_page, fill


@pytest.fixture
def place(tmp_path: Path) -> LedgerFile:
    return LedgerFile(tmp_path / "ledger.sqlite")


def test_a_new_file_is_fine_and_not_made(place: LedgerFile, tmp_path: Path) -> None:
    assert check_ledger(place, is_running=False).verdict is Verdict.OK
    assert not list(tmp_path.glob("ledger*"))


def test_a_file_in_use_is_another_service_s_unless_this_one_runs(place: LedgerFile) -> None:
    store = open_store(place)
    used = check_ledger(place, is_running=False)
    assert used.verdict is Verdict.FAIL
    assert "is in use by another service (process " in used.message
    assert used.fix == f"LEDGER_FILE={str(place.path).removesuffix('.sqlite')}-2.sqlite"
    own = check_ledger(place, is_running=True)
    assert (own.verdict, own.message) == (
        Verdict.OK,
        f"{place.path} is in use by the service that runs",
    )
    store.close()


def test_a_damaged_file_and_one_that_was_moved_aside_are_named(place: LedgerFile) -> None:
    store = SqliteStore(place)
    fill(store)
    store.close()
    assert place.path is not None
    damage_page(place.path)
    damaged = check_ledger(place, is_running=False)
    assert damaged.verdict is Verdict.FAIL
    assert damaged.message == f"LEDGER_FILE={place.path} is damaged, or no ledger"
    replaced = LedgerFile(place.path, replaces_damaged=True)
    assert check_ledger(replaced, is_running=False).verdict is Verdict.OK
    SqliteStore(replaced).close()
    aside = check_ledger(replaced, is_running=False)
    assert aside.verdict is Verdict.WARN
    assert "1 damaged ledger(s) were moved aside" in aside.message


def test_a_database_that_is_away_is_named_without_the_password() -> None:
    place = LedgerDatabase("postgresql://aura:s3cret@127.0.0.1:1/pictures")
    finding = check_ledger(place, is_running=False)
    assert finding.verdict is Verdict.FAIL
    assert finding.message.startswith("LEDGER_URL (127.0.0.1:1/pictures) can't be used: ")
    assert "s3cret" not in f"{finding}"
    assert finding.fix == "LEDGER_URL="
