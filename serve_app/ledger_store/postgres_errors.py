"""What PostgreSQL's errors mean for the ledger: away, full, slow, damaged, or changed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from serve_app.core.errors import LedgerBroken, LedgerDamaged, LedgerFault

logger = logging.getLogger("aura.ledger")

_REMEDY = (
    "The operator must see to the server. Requests without an Idempotency-Key are served meanwhile"
)


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn errors of the driver and of its pool into `LedgerFault`; log what they say.

    Raises `ValueError` for a value that can't be kept: nothing is wrong with the server.
    """
    try:
        yield
    except psycopg.DataError as error:  # such as a text with a NUL
        raise ValueError(f"the ledger can't keep this value: {first_line(error)}") from error
    except (psycopg.Error, PoolTimeout, PoolClosed) as error:
        fault = _fault(error)
        logger.warning("%s: %s", fault.problem, first_line(error))
        raise fault from error


def first_line(error: Exception) -> str:
    """Return what an error says, in one line. The driver's own texts name no password."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreachable() -> LedgerBroken:
    """Return that there is no connection to the server."""
    return LedgerBroken("the ledger's database can't be reached", remedy=_REMEDY)


def _fault(error: Exception) -> LedgerFault:
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    match state:  # https://www.postgresql.org/docs/current/errcodes-appendix.html
        case "53100":
            return LedgerFault("the ledger's database has a full disk", remedy=_REMEDY)
        case "57014" | "55P03" | "25P03":
            return LedgerFault("the ledger's database takes too long", remedy=_REMEDY)
        case "25006":
            return LedgerFault("the ledger's database can't be written", remedy=_REMEDY)
        case "XX001" | "XX002":
            return LedgerDamaged("the ledger's database is damaged", remedy=_REMEDY)
        case "42P01" | "3F000" | "42703" | "42501":
            return LedgerBroken("the ledger's tables can't be used", remedy=_REMEDY)
    if isinstance(error, (psycopg.OperationalError, PoolTimeout, PoolClosed)):
        return unreachable()
    return LedgerFault("the ledger's database can't be used", remedy=_REMEDY)
