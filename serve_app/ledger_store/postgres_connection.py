"""Connections to the ledger's PostgreSQL: their timeouts, and the lock that one service has.

A connection is refused, or found dead, within seconds, and no statement takes longer. What the
operator's URL says wins over the defaults.
"""

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from serve_app.core.errors import LedgerBroken, LedgerInUse, OperatorError
from serve_app.core.service.ledger_place import LedgerDatabase
from serve_app.ledger_store.postgres_errors import unreachable

_DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": 3,  # seconds, for each address
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,  # ms that sent data may stay unacknowledged
    "target_session_attrs": "read-write",  # of several hosts, the one that is no standby
}
_SESSION = {
    "statement_timeout": "3000",  # ms, less than the ledger waits for a call
    "lock_timeout": "2000",
    "idle_in_transaction_session_timeout": "10000",
    "tcp_keepalives_idle": "5",  # so that the lock of a machine that vanished is free soon
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_POLL_S = 0.25


def connection_text(place: LedgerDatabase) -> str:
    """Return libpq's connection string. Raises `OperatorError` for a URL that it can't read."""
    try:
        given = conninfo_to_dict(place.url)
    except psycopg.Error:  # whose text may repeat the URL
        raise OperatorError(
            "can't be read as the address of a PostgreSQL database",
            subject="LEDGER_URL",
            remedy="An example: postgresql://user:password@host:5432/database?sslmode=require",
        ) from None
    name = f"aura-serve {place.service}".strip()
    defaults = {**_DEFAULTS, "application_name": name[:63]}
    return make_conninfo(
        place.url, **{key: value for key, value in defaults.items() if key not in given}
    )


def prepare_session(connection: Connection[Any], schema: str) -> None:
    """Set the timeouts and the schema of a new connection."""
    settings = {**_SESSION, "search_path": schema}
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    if not connection.autocommit:
        connection.commit()


class DatabaseLock:
    """The lock that one service has on a schema: an advisory lock of a connection of its own.

    PostgreSQL frees it when the connection ends.
    """

    def __init__(self, place: LedgerDatabase) -> None:
        self._place = place
        self._key = int.from_bytes(sha256(place.schema.encode()).digest()[:8], signed=True)
        self._connection: Connection[Any] | None = None

    def acquire(self, wait_s: float) -> None:
        """Take the lock, or wait for it. Raises `LedgerInUse` and the driver's errors."""
        self.release()
        connection = psycopg.connect(connection_text(self._place), autocommit=True)
        try:
            prepare_session(connection, self._place.schema)
            end = time.monotonic() + wait_s
            while not self._try(connection):
                holder = self._holder(connection)
                if time.monotonic() >= end:
                    raise self._in_use(holder)
                time.sleep(_POLL_S)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def check_free(self, wait_s: float) -> None:
        """Check that no other service has the lock. Raises `LedgerInUse`."""
        with psycopg.connect(connection_text(self._place), autocommit=True) as connection:
            end = time.monotonic() + wait_s
            while not self._try(connection):
                holder = self._holder(connection)
                if self._place.service and self._place.service in holder:
                    return
                if time.monotonic() >= end:
                    raise self._in_use(holder)
                time.sleep(_POLL_S)
            # The server notices the end of a connection a moment later, and frees its lock then.
            connection.execute("SELECT pg_advisory_unlock(%s)", (self._key,))

    def check_kept(self) -> None:
        """Check that the lock is still ours. Raises `LedgerBroken`."""
        if self._connection is None or self._connection.closed:
            raise unreachable()
        self._connection.execute("SELECT 1")

    def acquire_again(self) -> None:
        """Take the lock again after its connection was lost. Raises `LedgerBroken`."""
        try:
            self.check_kept()
        except (psycopg.Error, LedgerBroken):
            try:
                self.acquire(0)
            except LedgerInUse:
                raise LedgerBroken(
                    "another session has the lock on the ledger's database",
                    remedy="It may be our own of before, which ends within seconds. Otherwise stop "
                    "the other service, or give this one another LEDGER_SCHEMA",
                ) from None

    def release(self) -> None:
        """Give the lock up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self, connection: Connection[Any]) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone()
        return bool(row and row[0])

    def _holder(self, connection: Connection[Any]) -> str:
        row = connection.execute(
            "SELECT concat_ws(' ', a.application_name, 'at', coalesce(host(a.client_addr), 'the"
            " server''s machine'), 'since', date_trunc('second', a.backend_start))"
            " FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND l.classid::bigint = (%(key)s::bigint >> 32) & 4294967295"
            " AND l.objid::bigint = %(key)s::bigint & 4294967295",
            {"key": self._key},
        ).fetchone()
        return str(row[0]) if row else ""

    def _in_use(self, holder: str) -> LedgerInUse:
        return LedgerInUse(
            "is in use by another service" + (f" ({holder})" if holder else ""),
            subject=f"schema {self._place.schema} of LEDGER_URL",
            remedy="Stop that service, or give this one another LEDGER_SCHEMA",
        )
