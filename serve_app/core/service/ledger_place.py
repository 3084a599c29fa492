"""Where the ledger is kept: a file of this machine, or a PostgreSQL database.

Values that settings make and the ledger's stores read.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A SQLite file on one machine."""

    path: Path | None  # None: in memory, for one process
    replaces_damaged: bool = False  # whether a damaged file is moved aside and begun anew
    service: str = ""  # who opens it, to know its own lock by


@dataclass(frozen=True, slots=True)
class LedgerDatabase:
    """A schema in a PostgreSQL database, which any machine may reach."""

    url: str = field(repr=False)  # it may hold a password
    schema: str = "aura"
    service: str = ""


LedgerPlace = LedgerFile | LedgerDatabase
