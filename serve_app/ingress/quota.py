"""What callers may use: their rate limits, kept by the ledger."""

from serve_app.core.errors import LedgerAway, RateLimited
from serve_app.core.service.rate_limit import RateLimit
from serve_app.ingress.contracts import Ledger


class Quota:
    """Charges jobs, in megapixel-steps, to their callers; without a limit, nothing is charged."""

    def __init__(self, ledger: Ledger, limit: RateLimit | None) -> None:
        self._ledger = ledger
        self._limit = limit

    async def charge(self, caller: str, cost: float) -> float:
        """Take the cost from the caller's allowance, and return what was taken.

        Raises `RateLimited`. While the ledger is away nothing is charged: images matter more.
        """
        if self._limit is None:
            return 0.0
        try:
            wait_s = await self._ledger.consume(caller, cost, self._limit)
        except LedgerAway:
            return 0.0
        if wait_s > 0:
            raise RateLimited(wait_s)
        return cost

    async def refund(self, caller: str, cost: float) -> None:
        """Give the cost back. Raises `LedgerAway`."""
        if cost and self._limit is not None:
            await self._ledger.consume(caller, -cost, self._limit)
