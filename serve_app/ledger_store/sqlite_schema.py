"""The tables of the ledger's SQLite file, in versions: a start brings an older file up to date."""

import sqlite3

from serve_app.core.errors import OperatorError

_MIGRATIONS = (
    # 1: the tables of before the file had a version, which may be there already
    """
    CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, caller TEXT, owner TEXT, created REAL, state TEXT,
        ended REAL, code TEXT, message TEXT, meta TEXT, pngs BLOB, sizes TEXT
    );
    CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended);
    CREATE TABLE IF NOT EXISTS claims (
        scope TEXT PRIMARY KEY, fingerprint TEXT, seed INTEGER, job TEXT, created REAL, taker TEXT
    );
    CREATE TABLE IF NOT EXISTS terms (caller TEXT PRIMARY KEY, terms TEXT, accepted REAL);
    """,
    # 2: checksums of results, and which jobs run without reading all of them
    """
    ALTER TABLE jobs ADD COLUMN checksum INTEGER;
    CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running';
    CREATE INDEX claims_by_job ON claims (job);
    CREATE TABLE probe (id INTEGER PRIMARY KEY, content BLOB);
    """,
    # 3: what callers have used on a day
    "CREATE TABLE usage (caller TEXT, day TEXT, used REAL, PRIMARY KEY (caller, day));",
    # 4: the jobs of a caller
    "CREATE INDEX jobs_by_caller ON jobs (caller, created, id);",
    # 5: what links are signed with
    "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB);",
    # 6: who is told of a job's end, and what waits to be told
    """
    ALTER TABLE jobs ADD COLUMN webhook TEXT;
    CREATE TABLE webhooks (
        id TEXT PRIMARY KEY, job TEXT, url TEXT, body TEXT, created REAL, tries INTEGER, due REAL
    );
    CREATE INDEX webhooks_by_due ON webhooks (url, due);
    CREATE INDEX webhooks_by_job ON webhooks (job);
    CREATE INDEX webhooks_by_age ON webhooks (created);
    """,
    # 7: what callers have set for their own requests
    """
    CREATE TABLE options (
        caller TEXT, name TEXT, value TEXT, kept REAL, PRIMARY KEY (caller, name)
    );
    CREATE INDEX options_by_age ON options (kept);
    """,
)
VERSION = len(_MIGRATIONS)


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables up to date. Raises `OperatorError` for those of a newer release."""
    check_version(db)
    for number, script in enumerate(_MIGRATIONS[_version(db) :], _version(db) + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")


def check_version(db: sqlite3.Connection) -> None:
    """Check that this release knows the tables. Raises `OperatorError`."""
    if (version := _version(db)) > VERSION:
        raise OperatorError(
            f"has version {version}, and this release knows {VERSION}",
            subject="the ledger's file",
            remedy="Use the newer release, or another LEDGER_FILE",
        )


def check_tables(db: sqlite3.Connection) -> None:
    """Read the first page of each table, if there are any. Raises SQLite's errors."""
    names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (name,) in names:
        db.execute(f'SELECT rowid FROM "{name}" NOT INDEXED LIMIT 1').fetchone()


def has_checksums(db: sqlite3.Connection) -> bool:
    """Return whether results have checksums yet."""
    return _version(db) > 1


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
