"""The tables of the ledger in PostgreSQL, in versions: a start brings older ones up to date."""

from typing import Any

from psycopg import Connection, sql

from serve_app.core.errors import OperatorError

_MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id text PRIMARY KEY, caller text NOT NULL, owner text NOT NULL,
        created double precision NOT NULL, state text NOT NULL, ended double precision,
        code text, message text, meta text, pngs bytea, sizes integer[]
    );
    CREATE INDEX jobs_by_end ON jobs (ended);
    CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running';
    ALTER TABLE jobs ALTER COLUMN pngs SET STORAGE EXTERNAL;
    CREATE TABLE claims (
        scope text PRIMARY KEY, fingerprint text NOT NULL, seed bigint NOT NULL,
        job text NOT NULL, created double precision NOT NULL, taker text NOT NULL
    );
    CREATE INDEX claims_by_job ON claims (job);
    CREATE TABLE terms (
        caller text PRIMARY KEY, terms text NOT NULL, accepted double precision NOT NULL
    );
    """,
    """
    CREATE TABLE usage (
        caller text NOT NULL, day text NOT NULL, used double precision NOT NULL,
        PRIMARY KEY (caller, day)
    );
    """,
    "CREATE INDEX jobs_by_caller ON jobs (caller, created, id);",
    "CREATE TABLE secrets (name text PRIMARY KEY, value bytea NOT NULL);",
    """
    ALTER TABLE jobs ADD COLUMN webhook text;
    CREATE TABLE webhooks (
        id text PRIMARY KEY, job text NOT NULL, url text NOT NULL, body text NOT NULL,
        created double precision NOT NULL, tries integer NOT NULL, due double precision NOT NULL
    );
    CREATE INDEX webhooks_by_due ON webhooks (url, due);
    CREATE INDEX webhooks_by_job ON webhooks (job);
    CREATE INDEX webhooks_by_age ON webhooks (created);
    """,
    """
    CREATE TABLE options (
        caller text NOT NULL, name text NOT NULL, value text NOT NULL,
        kept double precision NOT NULL, PRIMARY KEY (caller, name)
    );
    CREATE INDEX options_by_age ON options (kept);
    """,
)
VERSION = len(_MIGRATIONS)


def migrate(connection: Connection[Any], schema: str) -> None:
    """Make the schema and its tables, or bring them up to date, in one transaction.

    Raises `OperatorError` for those of a newer release. The caller has the lock on the schema.
    """
    with connection.transaction():
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))
        if found.fetchone() is None:  # only then, because it needs a privilege
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (schema,))
        connection.execute("CREATE TABLE IF NOT EXISTS version (number integer NOT NULL)")
        row = connection.execute("SELECT max(number) FROM version").fetchone()
        version = (row and row[0]) or 0
        if version > VERSION:
            raise OperatorError(
                f"has version {version}, and this release knows {VERSION}",
                subject=f"schema {schema} of LEDGER_URL",
                remedy="Use the newer release, or another LEDGER_SCHEMA",
            )
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            connection.execute(script)
            connection.execute("INSERT INTO version VALUES (%s)", (number,))
