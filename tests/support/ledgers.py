"""Ledgers that tests turn, delay and take away."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.core.errors import LedgerAway
from serve_app.core.service.info import LedgerHealth
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobError,
    JobResult,
    JobState,
)
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.ledger import Ledger
from tests.support.waiting import until_async


class WatchedLedger(Ledger):
    """A ledger with a clock to turn; counts who is alive or waits, and can delay a job's end."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(clock=lambda: self.now)
        self.joined = 0
        self.senders: set[str] = set()  # of heartbeats
        self.created: list[Job] = []
        self.finishing = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        self.created.append(job)
        return await super().create(job, claim)

    async def heartbeat(
        self, owner: str, jobs: frozenset[str], load: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Any]]:
        self.senders.add(owner)
        return await super().heartbeat(owner, jobs, load)

    async def hear_newest(self) -> None:
        """Wait for the first heartbeat, which lingers, of whoever created the newest job."""
        await until_async(lambda: self.created[-1].owner in self.senders)

    async def get(self, id: str, wait: float) -> Job | None:
        self.joined += wait > 0
        return await super().get(id, wait)

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        self.finishing.set()
        await self.may_finish.wait()
        await super().finish(id, owner, state, error, result)


class NoRefunds(WatchedLedger):
    """A ledger that can't be reached while it should give back what a fault has cost."""

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        if cost < 0:
            raise LedgerAway("the ledger is restarting")
        return await super().consume(caller, cost, limit)


class CutOffLedger:
    """A ledger that one process can't reach any more once it is cut off."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.is_cut_off = False

    def __getattr__(self, name: str) -> Any:
        return getattr(AwayLedger() if self.is_cut_off else self._ledger, name)


class AwayLedger:
    """A ledger that can't be reached."""

    def __getattr__(self, name: str) -> Any:
        async def away(*args: object) -> None:
            raise LedgerAway("the ledger is restarting")

        return away

    async def health(self) -> LedgerHealth:
        return LedgerHealth("the ledger is restarting")
