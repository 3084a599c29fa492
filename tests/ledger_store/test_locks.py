"""One service for each ledger: the second one is refused by name, and a redeploy is not."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from serve_app.core.errors import LedgerBroken, LedgerInUse
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile, LedgerPlace
from serve_app.ledger_store.file_lock import lock_file
from serve_app.ledger_store.opening import check_place, open_store
from serve_app.ledger_store.store import LedgerStore
from tests.support.ledger_stores import JOB, fill, none_lost
from tests.support.postgres import PostgresServer

HOLDER = (
    "import sys; from pathlib import Path\n"
    "from serve_app.core.service.ledger_place import LedgerFile\n"
    "from serve_app.ledger_store.opening import open_store\n"
    "store = open_store(LedgerFile(Path(sys.argv[1]), service='another'))\n"
    "print('open', flush=True); sys.stdin.read()\n"
)


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerPlace:
    if request.param == "file":
        return LedgerFile(tmp_path / "ledger.sqlite", service="ours")
    database: LedgerDatabase = request.getfixturevalue("database")
    return replace(database, service="ours")


def test_a_second_service_is_refused_by_name(place: LedgerPlace) -> None:
    first = open_store(place)
    other: LedgerPlace = replace(place, service="another")
    for refused in (
        lambda: open_store(other, lock_wait_s=0.2),
        lambda: check_place(other, 0.2),
    ):
        with pytest.raises(LedgerInUse, match="is in use by another service ") as error:
            refused()
        assert "s3cret" not in str(error.value)
    check_place(other, 0, lock=False)
    first.close()
    check_place(other, 0)
    open_store(other, lock_wait_s=0).close()


def test_a_redeploy_of_the_same_service_is_not_refused(place: LedgerPlace) -> None:
    """The builder runs while the old ledger has the lock; the new ledger waits for its end."""
    before = open_store(place)
    check_place(place, 0)
    threading.Timer(0.3, before.close).start()
    open_store(place, lock_wait_s=10).close()


def test_a_check_makes_nothing(tmp_path: Path, database: LedgerDatabase) -> None:
    check_place(LedgerFile(tmp_path / "new" / "ledger.sqlite"), 0)
    assert not list(tmp_path.iterdir())
    check_place(database, 0)
    check_place(database, 0)  # which has left no lock behind


@pytest.mark.parametrize("whole", [False, True])
def test_a_check_of_a_file_makes_nothing_beside_it(tmp_path: Path, whole: bool) -> None:
    place = LedgerFile(tmp_path / "ledger.sqlite")
    open_store(place).close()
    lock_file(tmp_path / "ledger.sqlite").unlink()
    check_place(place, 0, whole=whole)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


def bytes_read() -> int:
    """Return the bytes that this process has read."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line]
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")
def test_a_start_reads_the_whole_file_once_when_it_opens_it(tmp_path: Path) -> None:
    place = LedgerFile(tmp_path / "ledger.sqlite")
    store = open_store(place)
    fill(store, 200)
    store.close()
    size = (tmp_path / "ledger.sqlite").stat().st_size
    before = bytes_read()
    check_place(place, 0)
    assert bytes_read() - before < size / 4
    before = bytes_read()
    open_store(place).close()
    assert bytes_read() - before >= size


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(LedgerInUse, match=f"process {holder.pid} on "):
            open_store(LedgerFile(file), lock_wait_s=0)
        holder.kill()
    open_store(LedgerFile(file), lock_wait_s=5).close()
    assert lock_file(file).exists()


def test_a_symbolic_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "ledger.sqlite", tmp_path / "folder", tmp_path / "link.sqlite"
    link.symlink_to(file)
    folder.symlink_to(tmp_path, target_is_directory=True)
    first = open_store(LedgerFile(file))
    for name in (link, folder / "ledger.sqlite"):
        other = LedgerFile(name, service="another")
        for refused in (partial(open_store, other, lock_wait_s=0), partial(check_place, other, 0)):
            with pytest.raises(LedgerInUse, match="is in use by another service"):
                refused()
    first.close()
    open_store(LedgerFile(link), lock_wait_s=0).close()
    assert not Path(f"{link}.lock").exists()


def test_a_damaged_file_behind_a_symbolic_link_is_moved_aside_and_the_link_stays(
    tmp_path: Path,
) -> None:
    file, link = tmp_path / "folder" / "ledger.sqlite", tmp_path / "link.sqlite"
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    link.symlink_to(file)
    store = open_store(LedgerFile(link, replaces_damaged=True))
    store.create(JOB, None, JOB.created, none_lost)
    store.close()
    assert link.is_symlink()
    assert len(list(file.parent.glob("ledger.sqlite.damaged-*"))) == 1
    assert file.read_bytes().startswith(b"SQLite format 3")


def test_a_file_with_a_second_name_is_refused_because_a_lock_is_on_one_name_only(
    tmp_path: Path,
) -> None:
    file, other = tmp_path / "ledger.sqlite", tmp_path / "other.sqlite"
    open_store(LedgerFile(file)).close()
    os.link(file, other)
    for name in (file, other):
        place = LedgerFile(name)
        for refused in (partial(open_store, place, lock_wait_s=0), partial(check_place, place, 0)):
            with pytest.raises(LedgerInUse, match="has 2 names"):
                refused()
    other.unlink()
    open_store(LedgerFile(file), lock_wait_s=0).close()


def test_two_services_share_a_database_by_schemas(database: LedgerDatabase) -> None:
    first = open_store(database)
    second = open_store(replace(database, schema=f"{database.schema}_b"))
    first.create(JOB, None, JOB.created, none_lost)
    assert second.read(JOB.id) is None
    first.close()
    second.close()


def test_a_lock_that_another_service_took_meanwhile_breaks_the_ledger(
    database: LedgerDatabase, postgres: PostgresServer
) -> None:
    first = open_store(database)
    postgres.end_connections("aura-serve")
    other = open_store(replace(database, service="another"), lock_wait_s=5)
    for call in (first.check, first.recover):
        with pytest.raises(LedgerBroken):
            call()
    with pytest.raises(LedgerBroken, match="another session has the lock"):
        first.recover()
    other.close()
    recovered(first)
    first.close()


def recovered(store: LedgerStore) -> None:
    end = time.monotonic() + 10
    call: Callable[[], None] = store.recover
    while True:
        try:
            return call()
        except LedgerBroken:
            assert time.monotonic() < end
            time.sleep(0.1)
