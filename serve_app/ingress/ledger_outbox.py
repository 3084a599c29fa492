"""Writes to the ledger that no response waits for: one queue, in order."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass

from serve_app.core.errors import LedgerAway, LedgerFault

logger = logging.getLogger("aura.jobs")

PATIENCE_S = 60.0  # seconds of a fault of the ledger, after which writes are dropped
_RETRY_S = 0.5  # seconds between two tries
MAX_BYTES = 256 * 2**20  # of images in the queue


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    job_id: str
    run: Callable[[], Awaitable[object]]
    size: int
    done: asyncio.Future[None]


class LedgerOutbox:
    """The queue of one process: writes are run one by one, in the order in which they came.

    The ledger's client tries again while the ledger restarts, and the outbox while its disk or
    database is at fault. When either gives up, the write is dropped with all writes that were
    queued before the attempt, for they waited at least as long.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._refused_since: float | None = None  # by the monotonic clock; None: all is well
        self._queue: deque[_Write] = deque()
        self._latest: dict[str, _Write] = {}  # by job
        self._bytes = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._queue

    @property
    def jobs(self) -> frozenset[str]:
        """The jobs about which something waits to be written."""
        return frozenset(self._latest)

    def has_capacity(self, size: int) -> bool:
        """Return whether images of this size may be queued."""
        return self._bytes + size <= self._max_bytes

    def put(self, job_id: str, run: Callable[[], Awaitable[object]], size: int = 0) -> None:
        """Queue a write about a job; `size` is the bytes of images that it holds."""
        write = _Write(job_id, run, size, asyncio.get_running_loop().create_future())
        self._queue.append(write)
        self._latest[job_id] = write
        self._bytes += size
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run_writes(), context=Context())

    async def wait_for(self, job_id: str, timeout_s: float) -> None:
        """Return when all queued writes about a job are done, or after `timeout_s` seconds.

        Return at once while the ledger refuses writes.
        """
        if self._refused_since is None and (write := self._latest.get(job_id)):
            await asyncio.wait([write.done], timeout=timeout_s)

    async def flush(self) -> None:
        """Return when the queue is empty."""
        while self._latest:
            await asyncio.wait([write.done for write in self._latest.values()])

    async def _run_writes(self) -> None:
        while self._queue:
            waiting, done = len(self._queue), 1
            try:
                await self._queue[0].run()
                self._refused_since = None
            except LedgerAway as error:
                if isinstance(error, LedgerFault) and self._is_patient():
                    await asyncio.sleep(_RETRY_S)
                    continue
                done = waiting
                logger.warning("the ledger was away too long and missed %d writes", waiting)
            except Exception:
                logger.exception("a write to the ledger failed")
            for _ in range(done):
                self._remove(self._queue.popleft())

    def _is_patient(self) -> bool:
        """Return whether the fault that is met now has not lasted for too long."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        return now - self._refused_since < self._patience_s

    def _remove(self, write: _Write) -> None:
        self._bytes -= write.size
        if self._latest.get(write.job_id) is write:
            del self._latest[write.job_id]
        write.done.set_result(None)
