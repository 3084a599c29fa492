"""Webhooks that wait in the ledger's SQLite file. The caller has begun a transaction."""

import sqlite3

from serve_app.core.service.webhooks import (
    LEASE_S,
    MAX_TRIES,
    MAX_WEBHOOKS,
    WEBHOOK_TTL,
    DueWebhooks,
    Webhook,
)
from serve_app.ledger_store.store import log_dropped


def add_webhook(db: sqlite3.Connection, webhook: Webhook | None, now: float, due: float) -> None:
    """Keep a webhook, if there is one, until it is settled; drop the oldest beyond the limit."""
    if webhook is None:
        return
    db.execute(
        "INSERT OR REPLACE INTO webhooks VALUES (?, ?, ?, ?, ?, 0, ?)",
        (webhook.id, webhook.job, webhook.url, webhook.body, now, due),
    )
    dropped = db.execute(
        "DELETE FROM webhooks WHERE id IN (SELECT id FROM webhooks WHERE url = ?"
        " ORDER BY created DESC LIMIT -1 OFFSET ?)",
        (webhook.url, MAX_WEBHOOKS),
    )
    log_dropped(dropped.rowcount, "too many wait for their receiver")


def take_webhooks(db: sqlite3.Connection, url: str, limit: int, now: float) -> DueWebhooks:
    """See `LedgerStore.take_webhooks`."""
    spent = db.execute("DELETE FROM webhooks WHERE url = ? AND tries >= ?", (url, MAX_TRIES))
    log_dropped(spent.rowcount, "their last try was not answered for")
    rows = db.execute(
        "SELECT id, job, url, body, tries + 1 FROM webhooks WHERE url = ? AND due <= ?"
        " ORDER BY due, id LIMIT ?",
        (url, now, limit),
    ).fetchall()
    taken = [(now + LEASE_S, row[0]) for row in rows]
    db.executemany("UPDATE webhooks SET tries = tries + 1, due = ? WHERE id = ?", taken)
    due, waiting = db.execute(
        "SELECT min(due), count(*) FROM webhooks WHERE url = ?", (url,)
    ).fetchone()
    wait = None if due is None else max(0.0, due - now)
    return DueWebhooks(tuple(Webhook(*row) for row in rows), wait, waiting)


def settle_webhook(db: sqlite3.Connection, id: str, due: float | None) -> None:
    """See `LedgerStore.settle_webhook`."""
    if due is None:
        db.execute("DELETE FROM webhooks WHERE id = ?", (id,))
    else:
        db.execute("UPDATE webhooks SET due = ? WHERE id = ?", (due, id))


def forget_webhooks(db: sqlite3.Connection, job: str) -> None:
    """Delete what waits of a job that goes on after all."""
    db.execute("DELETE FROM webhooks WHERE job = ?", (job,))


def delete_old_webhooks(db: sqlite3.Connection, now: float) -> None:
    """Delete what was never delivered, nor given up."""
    old = db.execute("DELETE FROM webhooks WHERE created < ?", (now - WEBHOOK_TTL,))
    log_dropped(old.rowcount, "nobody has sent them in time")
