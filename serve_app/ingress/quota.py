"""What callers may use: their rate limits and daily quotas, kept by the ledger."""

from collections.abc import Mapping
from contextlib import suppress

from serve_app.core.errors import LedgerAway, RateLimited
from serve_app.core.service.rate_limit import RateLimit
from serve_app.ingress.contracts import Ledger


class Quota:
    """Charges jobs, in megapixel-steps, to their callers; without a limit, nothing is charged.

    `daily` has the quotas of a day, by the caller's name; other callers have none.
    """

    def __init__(
        self,
        ledger: Ledger,
        limit: RateLimit | None,
        daily: Mapping[str, float] | None = None,
    ) -> None:
        self._ledger = ledger
        self._limit = limit
        self._daily = daily or {}

    async def charge(self, caller: str, cost: float) -> float:
        """Take the cost from the caller's allowances, and return what was taken.

        Raises `RateLimited`. While the ledger is away nothing is charged: images matter more.
        """
        try:
            is_charged = await self._charge_rate(caller, cost)
            try:
                return cost if await self._charge_day(caller, cost) or is_charged else 0.0
            except RateLimited:
                with suppress(LedgerAway):
                    await self._give_back_rate(caller, cost)
                raise
        except LedgerAway:
            return 0.0

    async def refund(self, caller: str, cost: float) -> None:
        """Give the cost back. Raises `LedgerAway`."""
        if not cost:
            return
        await self._give_back_rate(caller, cost)
        if quota := self._daily.get(caller):
            await self._ledger.use(caller, -cost, quota)

    async def _charge_rate(self, caller: str, cost: float) -> bool:
        if self._limit is None:
            return False
        wait_s = await self._ledger.consume(caller, cost, self._limit)
        if wait_s > 0:
            raise RateLimited(wait_s)
        return True

    async def _charge_day(self, caller: str, cost: float) -> bool:
        quota = self._daily.get(caller)
        if not quota:
            return False
        wait_s = await self._ledger.use(caller, cost, quota)
        if wait_s > 0:
            raise RateLimited(
                wait_s, f"your quota of {quota:g} megapixel-steps a day does not allow this"
            )
        return True

    async def _give_back_rate(self, caller: str, cost: float) -> None:
        if self._limit is not None:
            await self._ledger.consume(caller, -cost, self._limit)
