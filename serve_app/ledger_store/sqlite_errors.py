"""What SQLite's errors mean for the ledger: full, damaged, not writable, failing, or in use."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.core.errors import LedgerBroken, LedgerDamaged, LedgerFault

logger = logging.getLogger("aura.ledger")

_MEANWHILE = "Requests without an Idempotency-Key are served meanwhile"
_PRIMARY = 0xFF  # of an extended error code, https://sqlite.org/rescode.html
_PASSING = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_INTERRUPT,
)


def disk_full() -> LedgerFault:
    """Return that there is no room for what the ledger should keep."""
    return LedgerFault(
        "the ledger's disk is full", remedy=f"The operator must make room on it. {_MEANWHILE}"
    )


def file_full() -> LedgerFault:
    """Return that the file has all the pages that the ledger lets it have."""
    return LedgerFault(
        "the ledger's file is as large as it may be",
        remedy=f"Results are deleted ten minutes after their end, which makes room. {_MEANWHILE}",
    )


def damaged() -> LedgerDamaged:
    """Return that the file is not what was written."""
    return LedgerDamaged(
        "the ledger's file is damaged",
        remedy="The operator must restore it from a backup or move it aside "
        f"(LEDGER_ON_DAMAGE=replace does the latter). {_MEANWHILE}",
    )


def file_gone() -> LedgerBroken:
    """Return that another file, or none, is where the ledger was opened."""
    return LedgerBroken("the ledger's file was removed", remedy="Try again shortly")


def is_interrupted(error: sqlite3.Error) -> bool:
    """Return whether a call was ended from another thread."""
    return _code(error) == sqlite3.SQLITE_INTERRUPT


def is_lasting(fault: LedgerFault) -> bool:
    """Return whether only a new connection can end a fault: not a full disk, nor a slow one."""
    if isinstance(fault, LedgerDamaged):
        return True
    cause = fault.__cause__
    return isinstance(cause, sqlite3.Error) and _code(cause) not in _PASSING


def is_out_of_pages(fault: LedgerFault) -> bool:
    """Return whether SQLite found no room, on the disk or below the limit of the file's pages."""
    cause = fault.__cause__
    return isinstance(cause, sqlite3.Error) and _code(cause) == sqlite3.SQLITE_FULL


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn SQLite's and the system's errors into `LedgerFault`; log what they say themselves."""
    try:
        yield
    except sqlite3.Error as error:
        fault = _fault(error)
        logger.warning("%s: %s", fault.problem, error)
        raise fault from error
    except OSError as error:
        fault = _failing("the ledger's file can't be used")
        logger.warning("%s: %s", fault.problem, error)
        raise fault from error


def _fault(error: sqlite3.Error) -> LedgerFault:
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return disk_full()
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged()
        case 0 if isinstance(error, sqlite3.OperationalError):  # Python: a text is not UTF-8
            return damaged()
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return _failing("the ledger's file can't be opened or written")
        case sqlite3.SQLITE_IOERR:
            return _failing("the ledger's disk fails to read or write")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return _failing("another process uses the ledger's file")
        case sqlite3.SQLITE_INTERRUPT:
            return _failing("the ledger's disk takes too long")
        case _:
            return _failing("the ledger's file can't be used")


def _failing(problem: str) -> LedgerFault:
    return LedgerFault(
        problem, remedy=f"The operator must look at LEDGER_FILE and its disk. {_MEANWHILE}"
    )


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY
