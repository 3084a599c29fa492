"""Check a ledger's file before a service starts with it. It is not changed, and nothing is made.

Only where a service was killed, SQLite makes the index (-shm) of the log that it left (-wal).
"""

import shlex
from contextlib import closing

from serve_app.core.errors import LedgerDamaged, LedgerFault, OperatorError
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.ledger_store.file_lock import check_unlocked, real_path
from serve_app.ledger_store.sqlite_errors import named_errors
from serve_app.ledger_store.sqlite_file import check_results, check_structure, inspect
from serve_app.ledger_store.sqlite_schema import check_tables, check_version, has_checksums

_CHECK_S = 10.0  # seconds of structure, and as many of content


def check_file(place: LedgerFile, lock_wait_s: float | None, *, whole: bool) -> None:
    """Check that a file is a ledger of this release, and no other service's.

    The latter unless `lock_wait_s` is None. With `whole` its pages and results are read, as they
    are anyway when a store opens it; otherwise the first page of each table. Raises
    `OperatorError`. A damaged file that would be replaced is no error.
    """
    if place.path is None:
        return
    if lock_wait_s is not None:
        check_unlocked(place.path, place.service, lock_wait_s)
    if not place.path.exists():
        return
    subject = f"LEDGER_FILE={place.path}"
    try:
        with named_errors(), closing(inspect(real_path(place.path))) as db:
            if whole:
                check_structure(db, _CHECK_S)
            check_version(db)
            check_tables(db)
            if whole and has_checksums(db):
                check_results(db, 0, _CHECK_S)
    except LedgerDamaged:
        if not place.replaces_damaged:
            name = shlex.quote(str(place.path))
            raise OperatorError(
                "is damaged, or no ledger",
                subject=subject,
                remedy=f"Restore it from a backup, or begin anew: mv {name} {name}.damaged, or "
                "LEDGER_ON_DAMAGE=replace",
            ) from None
    except LedgerFault as fault:
        raise OperatorError(f"can't be used: {fault.problem}", subject=subject) from None
