"""What a SQLite ledger keeps besides jobs: terms, options and quotas by caller, its secrets."""

import sqlite3

from serve_app.ledger_store.store import MAX_OPTIONS, OPTION_TTL, KeptOption


def accept_terms(db: sqlite3.Connection, caller: str, terms: str, now: float) -> None:
    """Keep that the caller has accepted terms."""
    db.execute("INSERT OR REPLACE INTO terms VALUES (?, ?, ?)", (caller, terms, now))


def accepted_terms(db: sqlite3.Connection, caller: str) -> str | None:
    """Return the terms that the caller accepted last."""
    row = db.execute("SELECT terms FROM terms WHERE caller = ?", (caller,)).fetchone()
    return row[0] if row else None


def secret(db: sqlite3.Connection, name: str, fresh: bytes) -> bytes:
    """Return the secret of a name, which is `fresh` if none was kept before."""
    db.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, fresh))
    row = db.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
    return bytes(row[0])


def set_option(db: sqlite3.Connection, caller: str, name: str, value: str, now: float) -> None:
    """Keep what a caller has set, and drop the least recently used beyond the limit."""
    db.execute("INSERT OR REPLACE INTO options VALUES (?, ?, ?, ?)", (caller, name, value, now))
    db.execute(
        "DELETE FROM options WHERE rowid IN (SELECT rowid FROM options ORDER BY kept DESC"
        " LIMIT -1 OFFSET ?)",
        (MAX_OPTIONS,),
    )


def option(db: sqlite3.Connection, caller: str, name: str) -> KeptOption | None:
    """Return what a caller has set."""
    row = db.execute(
        "SELECT value, kept FROM options WHERE caller = ? AND name = ?", (caller, name)
    ).fetchone()
    return KeptOption(*row) if row else None


def renew_option(db: sqlite3.Connection, caller: str, name: str, now: float) -> None:
    """Keep what a caller has set for as long as if it were set now."""
    db.execute("UPDATE options SET kept = ? WHERE caller = ? AND name = ?", (now, caller, name))


def delete_options(db: sqlite3.Connection, now: float) -> None:
    """Delete what was used too long ago."""
    db.execute("DELETE FROM options WHERE kept < ?", (now - OPTION_TTL,))


def use(db: sqlite3.Connection, caller: str, day: str, cost: float, quota: float) -> bool:
    """Add to what the caller has used on a day, unless the sum is above the quota."""
    if cost > quota:
        return False
    changed = db.execute(
        "INSERT INTO usage VALUES (?, ?, max(0, ?)) ON CONFLICT (caller, day)"
        " DO UPDATE SET used = max(0, used + ?) WHERE used + ? <= ?",
        (caller, day, cost, cost, cost, quota),
    )
    return changed.rowcount > 0


def delete_usage(db: sqlite3.Connection, today: str) -> None:
    """Delete what was used before a day."""
    db.execute("DELETE FROM usage WHERE day < ?", (today,))
