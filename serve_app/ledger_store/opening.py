"""Open a ledger's store of whichever kind, or check beforehand that it could be opened."""

from serve_app.core.errors import OperatorError
from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.ledger_store.sqlite_check import check_file
from serve_app.ledger_store.sqlite_store import SqliteStore
from serve_app.ledger_store.store import LOCK_WAIT_S, LedgerStore

_MISSING = OperatorError(
    "needs psycopg, which is not installed",
    subject="LEDGER_URL",
    remedy="pip install 'aura-serve[postgres]'",
)


def open_store(place: LedgerPlace, lock_wait_s: float = LOCK_WAIT_S) -> LedgerStore:
    """Return the store at a place.

    Raises `LedgerFault`, or `OperatorError` where another try can't help, as `LedgerInUse`.
    """
    if isinstance(place, LedgerFile):
        return SqliteStore(place, lock_wait_s=lock_wait_s)
    try:
        from serve_app.ledger_store.postgres_store import PostgresStore
    except ImportError:
        raise _MISSING from None
    return PostgresStore(place, lock_wait_s=lock_wait_s)


def check_place(
    place: LedgerPlace, lock_wait_s: float, *, lock: bool = True, whole: bool = False
) -> None:
    """Check that a service could start with this ledger; change nothing.

    With `lock`, no other service than `place.service` may have it, after some seconds at least.
    With `whole`, all of a file is read for damage, which opening it does too. Raises
    `OperatorError` that says what is wrong, with the path or the server's name.
    """
    if isinstance(place, LedgerFile):
        check_file(place, lock_wait_s if lock else None, whole=whole)
        return
    try:
        from serve_app.ledger_store.postgres_check import check_server
    except ImportError:
        raise _MISSING from None
    check_server(place, lock_wait_s if lock else None)
