"""Check the ledger's database before a service starts with it. Nothing is made or changed."""

from ipaddress import ip_address

import psycopg
from psycopg.conninfo import conninfo_to_dict

from serve_app.core.errors import OperatorError
from serve_app.core.service.ledger_place import LedgerDatabase
from serve_app.ledger_store.postgres_connection import DatabaseLock, connection_text
from serve_app.ledger_store.postgres_errors import first_line

_SAFE_MODES = ("require", "verify-ca", "verify-full")


def check_server(place: LedgerDatabase, lock_wait_s: float | None) -> None:
    """Check that the database answers and, unless `lock_wait_s` is None, has no other service.

    Raises `OperatorError`, which names the server and never the password.
    """
    try:
        with psycopg.connect(connection_text(place)) as connection:
            row = connection.execute(
                "SELECT to_regnamespace(%(s)s) IS NOT NULL,"
                " has_database_privilege(current_database(), 'CREATE')",
                {"s": place.schema},
            ).fetchone()
        if row is not None and not any(row):
            raise OperatorError(
                f"does not exist in {server_name(place)}, and this user may not create it",
                subject=f"schema {place.schema}",
                remedy=f"CREATE SCHEMA {place.schema} AUTHORIZATION the user of LEDGER_URL",
            )
        if lock_wait_s is not None:
            DatabaseLock(place).check_free(lock_wait_s)
    except psycopg.Error as error:
        reason = _masked(first_line(error), place)
        raise OperatorError(
            f"can't be used: {reason}", subject=f"LEDGER_URL ({server_name(place)})"
        ) from None


def server_name(place: LedgerDatabase) -> str:
    """Return host, port and database of a URL, without user and password."""
    try:
        given = conninfo_to_dict(place.url)
    except psycopg.Error:
        return "an unreadable address"
    host = str(given.get("host") or given.get("hostaddr") or "localhost")
    port = f":{given['port']}" if given.get("port") else ""
    return f"{host}{port}/{given.get('dbname') or given.get('user') or ''}"


def is_encrypted_or_local(place: LedgerDatabase) -> bool:
    """Return whether the URL demands encryption, or its server is this machine."""
    given = conninfo_to_dict(place.url)
    if given.get("sslmode") in _SAFE_MODES:
        return True
    hosts = str(given.get("hostaddr") or given.get("host") or "localhost").split(",")
    return all(map(_is_local, hosts))


def _is_local(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):  # the latter is the folder of a socket
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _masked(text: str, place: LedgerDatabase) -> str:
    """Return a text without the password and without the URL, should a driver ever repeat them."""
    text = text.replace(place.url, "the URL")
    try:
        password = conninfo_to_dict(place.url).get("password")
    except psycopg.Error:
        return "the URL can't be read"
    return text.replace(str(password), "***") if password else text
