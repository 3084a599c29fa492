"""Open a ledger's store, of whichever kind."""

from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.ledger_store.sqlite_store import SqliteStore
from serve_app.ledger_store.store import LedgerStore


def open_store(place: LedgerPlace) -> LedgerStore:
    """Return the store at a place. Raises `LedgerFault`, or `OperatorError` if it never can be."""
    assert isinstance(place, LedgerFile)
    return SqliteStore(place)
