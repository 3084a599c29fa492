"""The SQLite file itself: connections, checks, its size, and what becomes of a damaged one."""

import shutil
import sqlite3
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from serve_app.ledger_store.sqlite_errors import damaged, disk_full, is_interrupted
from serve_app.ledger_store.sqlite_schema import migrate

_BUSY_S = 1.0  # seconds to wait for another process, such as a backup
_MAX_LOG = 64 << 20  # bytes of the write-ahead log that are left after it was merged
_OPEN_CHECK_S = 10.0  # seconds that the check of the whole file may take when it is opened
_PAGE_BYTES = 4096
_OVERHEAD = 2  # the most that the file may grow to, over the bytes of results: keys, free pages
_MIN_FREE = 16 << 20  # bytes of the disk: less than the result of one request
_SPARE = 8 << 20  # bytes that it may have beyond that


def is_removed(path: Path | None, inode: int) -> bool:
    """Return whether another file, or none, is where the one with this number was."""
    if path is None:
        return False
    with suppress(FileNotFoundError):
        return path.stat().st_ino != inode
    return True


def check_room(path: Path | None) -> None:
    """Raise `LedgerFault` where the disk is too full for the result of one request."""
    if path and shutil.disk_usage(path.parent).free < _MIN_FREE:
        raise disk_full()


def move_aside(path: Path) -> Path:
    """Rename a damaged file and what SQLite has beside it; return its new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    moved = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{moved}{suffix}")
    return moved


def connect(path: Path | None, mode: str = "rwc") -> sqlite3.Connection:
    """Open a connection, which makes the file if it may write; `None` is a database in memory.

    `mode` is SQLite's, and may have other parameters of its URI after it.
    """
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}" if path else ":memory:",
        uri=path is not None,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,  # one call at a time, from whichever thread
    )


def inspect(path: Path) -> sqlite3.Connection:
    """Open a connection to a file that nobody has open, without making anything beside it.

    A log that was left needs its index, which SQLite makes again; the file stays as it is.
    """
    has_log = Path(f"{path}-wal").exists()
    return connect(path, "ro" if has_log else "ro&immutable=1")


def prepared(db: sqlite3.Connection) -> sqlite3.Connection:
    """Return a connection that writes, with its tables brought up to date."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"PRAGMA journal_size_limit={_MAX_LOG}")
    migrate(db)
    return db


def open_checked(path: Path, most_bytes: int) -> sqlite3.Connection:
    """Return a connection that writes, after all of the file was read as far as time allows.

    `most_bytes` of results are to fit into the file. Raises `LedgerDamaged` and SQLite's errors.
    """
    db = connect(path)
    try:
        started = time.monotonic()
        check_structure(db, _OPEN_CHECK_S)
        pages = (most_bytes * _OVERHEAD + _SPARE) // _PAGE_BYTES
        db.execute(f"PRAGMA max_page_count={pages}")
        prepared(db)
        check_results(db, 0, _OPEN_CHECK_S - (time.monotonic() - started))
    except BaseException:
        db.close()
        raise
    return db


def limit_results(db: sqlite3.Connection, most_bytes: int) -> None:
    """Delete the images of the oldest results beyond some bytes; their jobs stay."""
    total = 0
    for id, size in db.execute(
        "SELECT id, length(pngs) FROM jobs WHERE pngs IS NOT NULL ORDER BY ended DESC"
    ).fetchall():
        total += size
        if total > most_bytes:
            db.execute("UPDATE jobs SET pngs = NULL WHERE id = ?", (id,))


def check_structure(db: sqlite3.Connection, seconds: float) -> None:
    """Read the structure of all pages, if the time suffices. Raises `LedgerDamaged`."""
    timer = threading.Timer(seconds, db.interrupt)
    timer.start()
    try:
        if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise damaged()
    except sqlite3.Error as error:
        if not is_interrupted(error):
            raise
    finally:
        timer.cancel()


def check_results(db: sqlite3.Connection, after: int, seconds: float) -> int:
    """Compare results after a row with their checksums, for some time; return where it ended."""
    end = time.monotonic() + seconds
    rows = db.execute(
        "SELECT rowid, meta, sizes, pngs, checksum FROM jobs"
        " WHERE pngs IS NOT NULL AND rowid > ? ORDER BY rowid",
        (after,),
    )
    for row, meta, sizes, pngs, digest in rows:
        verify(meta, sizes, pngs, digest)
        if time.monotonic() >= end:
            return int(row)
    return 0  # all are checked: begin again


def checksum(meta: str, sizes: str, pngs: bytes) -> int:
    """Return the checksum of a result."""
    return zlib.crc32(pngs, zlib.crc32(f"{meta}\n{sizes}".encode()))


def verify(meta: str, sizes: str, pngs: bytes, digest: int | None) -> None:
    """Raise `LedgerDamaged` if a result is not what was written; old ones have no checksum."""
    if digest is not None and checksum(meta, sizes, pngs) != digest:
        raise damaged()
