"""`WebhookSender`: tells receivers of jobs that have ended, as Standard Webhooks has it.

The ledger has the webhooks, and every ingress process sends what is due. A receiver is one that the
operator has listed, address and secret. No redirect is followed, no proxy is used, and the response
is not read, so that a receiver learns and decides nothing else.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from urllib.parse import urlsplit

import httpx2

from serve_app import __version__
from serve_app.core.errors import LedgerAway
from serve_app.core.service.metrics import WEBHOOK_TRIES, WEBHOOKS_WAITING, Meter, WebhookOutcome
from serve_app.core.service.webhooks import Webhook, WebhookReceiver, retry_pause, signature
from serve_app.ingress.contracts import Ledger

logger = logging.getLogger("aura.webhooks")

TIMEOUT_S = 10.0  # of one try
POLL_S = 15.0  # between two looks for what other processes have left
AT_ONCE = 4  # tries at one receiver
_UNSUBSCRIBED = 410  # "Gone": the receiver wants no more of this webhook


class WebhookSender:
    """The webhooks that one process sends, of which each receiver has a loop of its own.

    So a receiver that is slow delays nobody else's. `clock` is in seconds since the epoch.
    """

    def __init__(
        self,
        ledger: Ledger,
        receivers: Sequence[WebhookReceiver],
        meter: Meter,
        *,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._receivers = {receiver.url: receiver for receiver in receivers}
        self._meter = meter
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._clock = clock
        self._news = {url: asyncio.Event() for url in self._receivers}
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send what is due, until `stop`."""
        self._loops = [
            asyncio.create_task(self._serve(receiver), context=Context())
            for receiver in self._receivers.values()
        ]

    async def stop(self) -> None:
        """End all tries; another process makes them again."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)

    def note(self, url: str) -> None:
        """Look at once whether there is a webhook for a receiver."""
        if url in self._news:
            self._news[url].set()

    async def _serve(self, receiver: WebhookReceiver) -> None:
        """Send what is due to a receiver, and look again when there is news or time has passed."""
        news = self._news[receiver.url]
        async with httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # `_send` has one of its own, for the whole try
        ) as client:
            while True:
                news.clear()
                wait = self._poll_s
                with suppress(LedgerAway):  # it says so itself, and keeps what is due
                    wait = await self._send_due(client, receiver)
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), wait)

    async def _send_due(self, client: httpx2.AsyncClient, receiver: WebhookReceiver) -> float:
        """Try what is due, some at once; return the seconds until something may be again."""
        due = await self._ledger.take_webhooks(receiver.url, AT_ONCE)
        self._meter.record(WEBHOOKS_WAITING, due.waiting, receiver=host_of(receiver))
        await asyncio.gather(*(self._try(client, receiver, webhook) for webhook in due.webhooks))
        if due.webhooks:
            return 0.0  # there may be more
        return self._poll_s if due.wait is None else min(due.wait, self._poll_s)

    async def _try(
        self, client: httpx2.AsyncClient, receiver: WebhookReceiver, webhook: Webhook
    ) -> None:
        """Send a webhook once, and keep in the ledger what came of it."""
        problem = await self._send(client, receiver, webhook)
        pause = retry_pause(webhook.tries, random.random())
        if problem == f"HTTP {_UNSUBSCRIBED}":
            pause = None
        outcome = WebhookOutcome.DELIVERED
        if problem:
            outcome = WebhookOutcome.GIVEN_UP if pause is None else WebhookOutcome.FAILED
        self._meter.record(WEBHOOK_TRIES, outcome=outcome)
        if outcome is WebhookOutcome.GIVEN_UP:
            logger.warning(
                "the webhook of job %s to %s is given up after %d tries: %s",
                *(webhook.job, host_of(receiver), webhook.tries, problem),
            )
        with suppress(LedgerAway):  # it is tried again after its lease, under the same id
            await self._ledger.settle_webhook(webhook.id, pause if problem else None)

    async def _send(
        self, client: httpx2.AsyncClient, receiver: WebhookReceiver, webhook: Webhook
    ) -> str | None:
        """Return what was wrong, None if the receiver has the webhook."""
        now = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"aura-serve/{__version__}",
            "webhook-id": webhook.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(receiver.secrets, webhook.id, now, webhook.body),
        }
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                client.stream(
                    "POST", receiver.url, content=webhook.body.encode(), headers=headers
                ) as response,
            ):
                return None if response.is_success else f"HTTP {response.status_code}"
        except (TimeoutError, httpx2.TimeoutException):
            return f"no answer in {self._timeout_s:g} s"
        except Exception as error:  # a message that can't be sent must not keep back the others
            return type(error).__name__


def host_of(receiver: WebhookReceiver) -> str:
    """Return what logs and metrics say of a receiver: the rest of its address may be a secret."""
    return urlsplit(receiver.url).hostname or ""
