"""Read what a caller has set, and keep it for as long as it is used."""

from contextlib import suppress

from serve_app.core.errors import LedgerFault
from serve_app.ledger_store.async_store import AsyncStore

RENEWAL_INTERVAL = 3600.0  # seconds between two writes that an option is used: it lives for weeks


async def used_option(store: AsyncStore, caller: str, name: str, now: float) -> str | None:
    """Return what a caller has set, and renew it once in a while; None without it.

    The interval is far below an option's life, since those that were not renewed for longest are
    dropped first where there are too many. Raises `LedgerFault` if it can't be read.
    """
    kept = await store.read(lambda store: store.option(caller, name))
    if kept is None:
        return None
    if now - kept.renewed > RENEWAL_INTERVAL:
        with suppress(LedgerFault):  # the next use tries again
            await store.write(lambda store: store.renew_option(caller, name, now))
    return kept.value
