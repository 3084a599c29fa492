"""Writes to the ledger that no response waits for: one queue, in the order of each job."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass

from serve_app.core.errors import LedgerAway, LedgerBroken, LedgerFault

logger = logging.getLogger("aura.jobs")

PATIENCE_S = 60.0  # seconds that a write waits for the end of a fault before it is dropped
_RETRY_S = 0.5  # seconds after a try that met a fault
LINGER_S = 0.05  # seconds in which the response that brought a write has left this process
MAX_BYTES = 256 * 2**20  # of images in the queue


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    job_id: str
    run: Callable[[], Awaitable[object]]
    size: int
    queued: float  # seconds, by the outbox's clock


class LedgerOutbox:
    """The queue of one process: writes are run one by one, in the order in which they came.

    A write lingers for `linger_s`, unless somebody waits for it: to send a job's images to the
    ledger takes as much of this process as to send them to the client, who is waiting.

    The ledger's client tries again while the ledger restarts. When it gives up, the write is
    dropped with all writes that were queued before the attempt, for they waited at least as long.

    While the ledger's disk or database is at fault, the outbox tries again, and drops what has
    waited for `patience_s`. A disk may be too full for one job's images alone. So a job whose write
    is refused steps aside, and is tried again when no other waits, unless the fault is one with
    which no write can succeed.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        patience_s: float = PATIENCE_S,
        retry_s: float = _RETRY_S,
        linger_s: float = LINGER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._linger_s = linger_s
        self._clock = clock
        self._queue: deque[_Write] = deque()
        self._refused: dict[str, deque[_Write]] = {}  # by job, in the order of their next tries
        self._is_broken = False  # whether no write can succeed, as of the last try
        self._latest: dict[str, _Write] = {}  # by job
        self._news = asyncio.Event()  # that a write is queued
        self._tried = asyncio.Condition()  # notified after every try
        self._waiters = 0
        self._is_awaited = asyncio.Event()  # set while somebody waits
        self._bytes = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._latest

    @property
    def jobs(self) -> frozenset[str]:
        """The jobs about which something waits to be written."""
        return frozenset(self._latest)

    def has_capacity(self, size: int) -> bool:
        """Return whether images of this size may be queued."""
        return self._bytes + size <= self._max_bytes

    def put(self, job_id: str, run: Callable[[], Awaitable[object]], size: int = 0) -> None:
        """Queue a write about a job; `size` is the bytes of images that it holds."""
        write = _Write(job_id, run, size, self._clock())
        self._latest[job_id] = write
        self._bytes += size
        if job_id in self._refused:
            self._refused[job_id].append(write)
        else:
            self._queue.append(write)
            self._news.set()
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run_writes(), context=Context())

    async def wait_for(self, job_id: str, timeout_s: float) -> None:
        """Return when all queued writes about a job are done, or after `timeout_s` seconds.

        Return at once when the ledger refuses them.
        """

        def is_settled() -> bool:
            return self._is_broken or job_id in self._refused or job_id not in self._latest

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait(is_settled)

    async def flush(self) -> None:
        """Return when the queue is empty."""
        await self._wait(lambda: self.is_empty)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds, for which the writes don't linger."""
        self._waiters += 1
        self._is_awaited.set()
        try:
            async with self._tried:
                await self._tried.wait_for(condition)
        finally:
            self._waiters -= 1
            if not self._waiters:
                self._is_awaited.clear()

    @property
    def _next(self) -> deque[_Write]:
        """The queue whose first write is next."""
        return self._queue or next(iter(self._refused.values()))

    async def _linger(self, write: _Write) -> None:
        with suppress(TimeoutError):
            left = write.queued + self._linger_s - self._clock()
            await asyncio.wait_for(self._is_awaited.wait(), left)

    async def _run_writes(self) -> None:
        while not self.is_empty:
            await self._linger(self._next[0])
            waiting = self._next  # another one than before, if that one comes after a refused write
            write, began = waiting[0], self._clock()
            fault = await _fault_of(write)
            self._is_broken = isinstance(fault, LedgerBroken)
            if isinstance(fault, LedgerFault):
                self._refuse(write)
            elif isinstance(fault, LedgerAway):
                self._drop(self._all(), until=began)
            else:
                self._end(waiting.popleft())
                if waiting is not self._queue:
                    self._queue.extendleft(reversed(self._refused.pop(write.job_id)))
            async with self._tried:
                self._tried.notify_all()
            if isinstance(fault, LedgerFault):
                await self._pause()

    def _refuse(self, write: _Write) -> None:
        """Let other jobs go first where they may succeed; drop what has waited for too long."""
        if self._is_broken:
            refused = self._all()
        else:
            of_job = [each for each in self._all() if each.job_id == write.job_id]
            self._queue = deque(each for each in self._queue if each.job_id != write.job_id)
            self._refused.pop(write.job_id, None)
            self._refused[write.job_id] = deque(of_job)  # the last to be tried again
            refused = [each for writes in self._refused.values() for each in writes]
        self._drop(refused, until=self._clock() - self._patience_s)

    async def _pause(self) -> None:
        """Return when it is time to try again, or when a write waits that may succeed."""
        if self._is_broken and not self.is_empty:
            await asyncio.sleep(self._retry_s)
        elif self._refused and not self._queue:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._retry_s)

    def _all(self) -> list[_Write]:
        return [*self._queue, *(write for writes in self._refused.values() for write in writes)]

    def _drop(self, writes: Iterable[_Write], until: float) -> None:
        """Give up those of the writes that were queued until then."""
        dropped = {write for write in writes if write.queued <= until}
        if not dropped:
            return
        logger.warning("the ledger was away too long and missed %d writes", len(dropped))
        self._queue = deque(write for write in self._queue if write not in dropped)
        left = {
            job: deque(w for w in writes if w not in dropped)
            for job, writes in self._refused.items()
        }
        self._refused = {job: writes for job, writes in left.items() if writes}
        for write in dropped:
            self._end(write)

    def _end(self, write: _Write) -> None:
        self._bytes -= write.size
        if self._latest.get(write.job_id) is write:
            del self._latest[write.job_id]


async def _fault_of(write: _Write) -> LedgerAway | None:
    """Run the write; return the fault with which the ledger refused it."""
    try:
        await write.run()
    except LedgerAway as fault:
        return fault
    except Exception:
        logger.exception("a write to the ledger failed")
    return None
