"""Webhooks: what an operator's receivers are told of a job that has ended, and how often.

Values and arithmetic of the Standard Webhooks specification, version 1. No HTTP and no clock.
"""

import hmac
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from serve_app.core.service.jobs import Job

RETRY_S = (5.0, 25.0, 90.0, 240.0, 480.0, 900.0, 1500.0)  # before each try after the first: 54 min
MAX_TRIES = len(RETRY_S) + 1
RETRY_JITTER = 0.1  # of each pause, so that the tries of many jobs come apart
# Before a lost job is reported: it may be taken over, and not be lost. One with an idempotency key
# may be in the spool, for a service that has yet to start and to load its models.
ABANDONED_WAIT_S, CLAIMED_WAIT_S = 60.0, 900.0
MAX_WEBHOOKS = 10_000  # that wait for one receiver; the oldest are dropped first
WEBHOOK_TTL = 7200.0  # seconds that one is kept at most, such as one whose receiver was unlisted
LEASE_S = 30.0  # for one try, after which another process may make the next


@dataclass(frozen=True, slots=True)
class WebhookReceiver:
    """An address that jobs may name, and the secrets that its webhooks are signed with."""

    url: str
    secrets: tuple[bytes, ...] = field(repr=False)  # more than one while they are exchanged


@dataclass(frozen=True, slots=True)
class Webhook:
    """One message to one receiver, as the ledger keeps it until it is delivered."""

    id: str
    job: str
    url: str
    body: str  # JSON
    tries: int = 0  # that were begun


@dataclass(frozen=True, slots=True)
class DueWebhooks:
    """The webhooks that are to be tried now, and the seconds until the next one; None without.

    `waiting` counts those of the receiver, these among them.
    """

    webhooks: tuple[Webhook, ...]
    wait: float | None = None
    waiting: int = 0


def lost_job_wait(has_claim: bool) -> float:
    """Return the seconds until it is reported that a job is lost."""
    return CLAIMED_WAIT_S if has_claim else ABANDONED_WAIT_S


def webhook_of(job: Job, ended: float) -> Webhook | None:
    """Return what is told of a job's end, if it names a receiver: no prompt and no image.

    Its id is the same however often the end is written down. `ended` is in seconds since the epoch.
    """
    if job.webhook is None:
        return None
    state = str(job.state)
    body = {
        "type": f"job.{state}",
        "timestamp": _iso(ended),
        "data": {
            "jobId": job.id,
            "state": state,
            "createdAt": _iso(job.created),
            "endedAt": _iso(ended),
            "errorCode": job.error.code if job.error else None,
        },
    }
    digest = sha256(f"{job.id}\n{job.owner}\n{state}".encode()).hexdigest()
    return Webhook(f"msg_{digest[:32]}", job.id, job.webhook, json.dumps(body))


def signature(secrets: Sequence[bytes], id: str, timestamp: int, body: str) -> str:
    """Return the header `webhook-signature`: one HMAC-SHA256 for each secret."""
    signed = f"{id}.{timestamp}.{body}".encode()
    digests = (hmac.digest(secret, signed, sha256) for secret in secrets)
    return " ".join(f"v1,{b64encode(digest).decode()}" for digest in digests)


def retry_pause(tries: int, jitter: float) -> float | None:
    """Return the seconds until the next try after so many; None after the last one.

    `jitter` is from 0 to 1, at random.
    """
    if tries >= MAX_TRIES:
        return None
    return RETRY_S[tries - 1] * (1 + RETRY_JITTER * jitter)


def _iso(seconds: float) -> str:
    time = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return time.replace("+00:00", "Z")
