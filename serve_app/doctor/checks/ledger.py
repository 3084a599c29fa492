"""Check the ledger: its file or its database, and that no other service has it.

The ledger is not changed. No Ray.
"""

import shlex
from pathlib import Path

from serve_app.config.folders import file_problem, nearest_existing
from serve_app.core.errors import LedgerInUse, OperatorError
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile, LedgerPlace
from serve_app.doctor.finding import Finding, fail, fine, problem_of, warn
from serve_app.ledger_store.opening import check_place

_SQLITE_HEADER = b"SQLite format 3\0"
_WAIT_S = 0.0  # for a service that is just ending


def check_ledger(place: LedgerPlace, *, is_running: bool) -> Finding:
    """Check that a service could start with the ledger that the settings name.

    `is_running` says that a service answers on this one's port: the ledger is then its own.
    """
    if isinstance(place, LedgerDatabase):
        return _check_database(place, is_running=is_running)
    return _check_file(place, is_running=is_running)


def _check_file(place: LedgerFile, *, is_running: bool) -> Finding:
    file = place.path
    if file is None:
        return fine("ledger", "it is kept in memory")
    name = shlex.quote(str(file))
    if problem := file_problem(file):
        existing = nearest_existing(file.parent)
        is_foreign = existing.is_dir() and not file.is_dir()
        fix = f"sudo chown -R $USER {shlex.quote(str(existing))}" if is_foreign else "LEDGER_FILE="
        return fail("ledger", f"{file} {problem}", fix)
    if file.exists() and not _is_database(file):
        message = f"{file} is not a ledger: it is not an SQLite database"
        return fail("ledger", message, f"mv {name} {name}.other")
    try:
        check_place(place, _WAIT_S, whole=True)
    except LedgerInUse as error:
        if is_running:
            return fine("ledger", f"{file} is in use by the service that runs")
        other = file.with_name(f"{file.stem}-2{file.suffix}")
        return fail("ledger", problem_of(error), f"LEDGER_FILE={other}")
    except OperatorError as error:
        return fail("ledger", problem_of(error), f"mv {name} {name}.damaged")
    damaged = sorted(file.parent.glob(f"{file.name}.damaged-*"))
    if damaged:
        files = " ".join(shlex.quote(str(path)) for path in damaged)
        message = f"{len(damaged)} damaged ledger(s) were moved aside in {file.parent}"
        return warn("ledger", f"{message}: the disk may be failing", f"rm {files}")
    return fine("ledger", f"{file} can be written")


def _check_database(place: LedgerDatabase, *, is_running: bool) -> Finding:
    try:
        check_place(place, _WAIT_S)
    except LedgerInUse as error:
        if not is_running:
            return fail("ledger", problem_of(error), f"LEDGER_SCHEMA={place.schema}_2")
    except OperatorError as error:
        return fail("ledger", problem_of(error), _database_fix(error))
    # Imported only here, because psycopg need not be installed.
    from serve_app.ledger_store.postgres_check import is_encrypted_or_local, server_name

    name = server_name(place)
    if not is_encrypted_or_local(place):
        separator = r"\&" if "?" in place.url else "?"
        return warn(
            "ledger",
            f"the password and the images on their way to {name} may be read by others: "
            "LEDGER_URL does not demand encryption",
            f"sed -i '/^LEDGER_URL=/s/$/{separator}sslmode=require/' .env.local",
        )
    use = "is in use by the service that runs" if is_running else "can be used"
    return fine("ledger", f"schema {place.schema} of {name} {use}")


def _database_fix(error: OperatorError) -> str:
    """Return the command of the error's remedy, or the line that goes back to a file."""
    return error.remedy if error.remedy.startswith("pip ") else "LEDGER_URL="


def _is_database(file: Path) -> bool:
    """Return whether SQLite would open the file: it has SQLite's header or is empty."""
    with file.open("rb") as stream:
        return stream.read(len(_SQLITE_HEADER)) in (_SQLITE_HEADER, b"")
