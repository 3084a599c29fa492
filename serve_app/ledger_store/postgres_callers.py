"""What a PostgreSQL ledger keeps besides jobs: terms, options and quotas by caller, its secrets."""

from typing import Any

from psycopg import Connection

from serve_app.ledger_store.store import MAX_OPTIONS, OPTION_TTL, KeptOption


def accept_terms(db: Connection[Any], caller: str, terms: str, now: float) -> None:
    """Keep that the caller has accepted terms."""
    db.execute(
        "INSERT INTO terms VALUES (%s, %s, %s) ON CONFLICT (caller)"
        " DO UPDATE SET terms = excluded.terms, accepted = excluded.accepted",
        (caller, terms, now),
    )


def accepted_terms(db: Connection[Any], caller: str) -> str | None:
    """Return the terms that the caller accepted last."""
    row = db.execute("SELECT terms FROM terms WHERE caller = %s", (caller,)).fetchone()
    return row[0] if row else None


def secret(db: Connection[Any], name: str, fresh: bytes) -> bytes:
    """Return the secret of a name, which is `fresh` if none was kept before."""
    db.execute("INSERT INTO secrets VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, fresh))
    row = db.execute("SELECT value FROM secrets WHERE name = %s", (name,)).fetchone()
    return bytes(row[0]) if row else fresh


def set_option(db: Connection[Any], caller: str, name: str, value: str, now: float) -> None:
    """Keep what a caller has set, and drop the least recently used beyond the limit."""
    db.execute(
        "INSERT INTO options VALUES (%s, %s, %s, %s) ON CONFLICT (caller, name)"
        " DO UPDATE SET value = excluded.value, kept = excluded.kept",
        (caller, name, value, now),
    )
    db.execute(
        "DELETE FROM options WHERE (caller, name) IN (SELECT caller, name FROM options"
        " ORDER BY kept DESC OFFSET %s)",
        (MAX_OPTIONS,),
    )


def option(db: Connection[Any], caller: str, name: str) -> KeptOption | None:
    """Return what a caller has set."""
    row = db.execute(
        "SELECT value, kept FROM options WHERE caller = %s AND name = %s", (caller, name)
    ).fetchone()
    return KeptOption(*row) if row else None


def renew_option(db: Connection[Any], caller: str, name: str, now: float) -> None:
    """Keep what a caller has set for as long as if it were set now."""
    db.execute("UPDATE options SET kept = %s WHERE caller = %s AND name = %s", (now, caller, name))


def delete_options(db: Connection[Any], now: float) -> None:
    """Delete what was used too long ago."""
    db.execute("DELETE FROM options WHERE kept < %s", (now - OPTION_TTL,))


def use(db: Connection[Any], caller: str, day: str, cost: float, quota: float) -> bool:
    """Add to what the caller has used on a day, unless the sum is above the quota."""
    if cost > quota:
        return False
    changed = db.execute(
        "INSERT INTO usage VALUES (%s, %s, greatest(0, %s)) ON CONFLICT (caller, day)"
        " DO UPDATE SET used = greatest(0, usage.used + %s) WHERE usage.used + %s <= %s",
        (caller, day, cost, cost, cost, quota),
    )
    return changed.rowcount > 0


def delete_usage(db: Connection[Any], today: str) -> None:
    """Delete what was used before a day."""
    db.execute("DELETE FROM usage WHERE day < %s", (today,))
