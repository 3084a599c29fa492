"""Webhooks that wait in the ledger's PostgreSQL tables. The caller has begun a transaction."""

from typing import Any

from psycopg import Connection

from serve_app.core.service.webhooks import (
    LEASE_S,
    MAX_TRIES,
    MAX_WEBHOOKS,
    WEBHOOK_TTL,
    DueWebhooks,
    Webhook,
)
from serve_app.ledger_store.store import log_dropped


def add_webhook(db: Connection[Any], webhook: Webhook | None, now: float, due: float) -> None:
    """Keep a webhook, if there is one, until it is settled; drop the oldest beyond the limit."""
    if webhook is None:
        return
    db.execute(
        "INSERT INTO webhooks VALUES (%s, %s, %s, %s, %s, 0, %s) ON CONFLICT (id)"
        " DO UPDATE SET tries = 0, due = excluded.due, body = excluded.body",
        (webhook.id, webhook.job, webhook.url, webhook.body, now, due),
    )
    dropped = db.execute(
        "DELETE FROM webhooks WHERE id IN (SELECT id FROM webhooks WHERE url = %s"
        " ORDER BY created DESC OFFSET %s)",
        (webhook.url, MAX_WEBHOOKS),
    )
    log_dropped(dropped.rowcount, "too many wait for their receiver")


def take_webhooks(db: Connection[Any], url: str, limit: int, now: float) -> DueWebhooks:
    """See `LedgerStore.take_webhooks`."""
    spent = db.execute("DELETE FROM webhooks WHERE url = %s AND tries >= %s", (url, MAX_TRIES))
    log_dropped(spent.rowcount, "their last try was not answered for")
    rows = db.execute(
        "UPDATE webhooks SET tries = tries + 1, due = %s WHERE id IN (SELECT id FROM webhooks"
        " WHERE url = %s AND due <= %s ORDER BY due, id LIMIT %s FOR UPDATE SKIP LOCKED)"
        " RETURNING id, job, url, body, tries",
        (now + LEASE_S, url, now, limit),
    ).fetchall()
    found = db.execute("SELECT min(due), count(*) FROM webhooks WHERE url = %s", (url,)).fetchone()
    due, waiting = found or (None, 0)
    wait = None if due is None else max(0.0, due - now)
    return DueWebhooks(tuple(Webhook(*row) for row in rows), wait, waiting)


def settle_webhook(db: Connection[Any], id: str, due: float | None) -> None:
    """See `LedgerStore.settle_webhook`."""
    if due is None:
        db.execute("DELETE FROM webhooks WHERE id = %s", (id,))
    else:
        db.execute("UPDATE webhooks SET due = %s WHERE id = %s", (due, id))


def forget_webhooks(db: Connection[Any], job: str) -> None:
    """Delete what waits of a job that goes on after all."""
    db.execute("DELETE FROM webhooks WHERE job = %s", (job,))


def delete_old_webhooks(db: Connection[Any], now: float) -> None:
    """Delete what was never delivered, nor given up."""
    old = db.execute("DELETE FROM webhooks WHERE created < %s", (now - WEBHOOK_TTL,))
    log_dropped(old.rowcount, "nobody has sent them in time")
