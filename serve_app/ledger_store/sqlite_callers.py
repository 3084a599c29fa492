"""What a SQLite ledger keeps of callers: accepted terms, and what they have used on a day."""

import sqlite3


def accept_terms(db: sqlite3.Connection, caller: str, terms: str, now: float) -> None:
    """Keep that the caller has accepted terms."""
    db.execute("INSERT OR REPLACE INTO terms VALUES (?, ?, ?)", (caller, terms, now))


def accepted_terms(db: sqlite3.Connection, caller: str) -> str | None:
    """Return the terms that the caller accepted last."""
    row = db.execute("SELECT terms FROM terms WHERE caller = ?", (caller,)).fetchone()
    return row[0] if row else None


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
