"""`AsyncStore`: a store for an event loop, whose calls never block it and end in bounded time.

It remembers what is wrong. While nothing can succeed, calls are refused at once; `maintain`, which
is called every second, tries to recover, and otherwise reads through the store now and then.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any, TypeVar

from serve_app.core.errors import LedgerBroken, LedgerDamaged, LedgerFault, OperatorError
from serve_app.ledger_store.store import LedgerStore

logger = logging.getLogger("aura.ledger")
T = TypeVar("T")

CALL_S = 4.0  # seconds of one call
_RETRY_S = 1.0  # between two tries to recover
_DAMAGED_RETRY_S = 10.0  # the same, where each reads the whole file
RECOVER_S = 15.0  # seconds that a try, or a check, may take
_THREADS = 4


def _retrieve(future: "asyncio.Future[T]") -> None:
    """Mark an error as seen: whoever waited for it may have given up."""
    if not future.cancelled():
        future.exception()


class AsyncStore:
    """A store, opened when this is made or, if that fails, by `maintain`.

    `opening` returns the store; its `LedgerFault` counts as any other fault.
    """

    def __init__(
        self,
        opening: Callable[[], LedgerStore],
        clock: Callable[[], float],
        call_s: float = CALL_S,
        recover_s: float = RECOVER_S,
    ) -> None:
        self._opening = opening
        self._call_s, self._recover_s = call_s, recover_s
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ledger")
        self._pending: set[asyncio.Future[Any]] = set()  # calls that took too long
        self._store: LedgerStore | None = None
        self._is_closed = False
        self._fault: LedgerFault | None = None
        self._next_try = self._next_check = clock() + _RETRY_S
        try:
            self._store = opening()
        except LedgerFault as fault:
            self._note(fault)

    @property
    def problem(self) -> str:
        """What is wrong, "" while all is well."""
        return self._fault.problem if self._fault else ""

    @property
    def notice(self) -> str:
        """What the operator should know although calls succeed."""
        return self._store.notice if self._store else ""

    def raise_fault(self) -> None:
        """Raise what is wrong, if anything is."""
        if self._fault is not None:
            raise copy(self._fault)

    async def read(self, call: Callable[[LedgerStore], T]) -> T:
        """Return what a call returns. Raises `LedgerFault`."""
        if self._store is None or isinstance(self._fault, LedgerBroken):
            raise copy(self._fault or _unresponsive())
        try:
            return await self._bounded(call, self._store, self._call_s)
        except LedgerFault as fault:
            self._note(fault)
            raise

    async def write(self, call: Callable[[LedgerStore], T]) -> T:
        """Return what a call that writes returns. Raises `LedgerFault`."""
        result = await self.read(call)
        self._forget_fault()
        return result

    async def maintain(self) -> None:
        """Recover if something is wrong, or check whether something is. Raises nothing."""
        now = self._clock()
        if self._fault is not None:
            if now >= self._next_try and not self._pending:
                retry = _DAMAGED_RETRY_S if isinstance(self._fault, LedgerDamaged) else _RETRY_S
                self._next_try = now + retry
                await self._recover()
        elif self._store is not None and now >= self._next_check:
            self._next_check = now + self._store.check_interval_s
            try:
                await self._bounded(lambda store: store.check(), self._store, self._recover_s)
            except LedgerFault as fault:
                self._note(fault)

    def close(self) -> None:
        """Give up the store, and one that is being opened as soon as it is."""
        self._is_closed = True
        if self._store is not None:
            self._store.close()
        self._threads.shutdown(wait=False)

    async def _recover(self) -> None:
        try:
            if self._store is None:
                await self._bounded(lambda _: self._opening(), None, self._recover_s, self._adopt)
            else:
                await self._bounded(lambda store: store.recover(), self._store, self._recover_s)
        except LedgerFault as fault:
            self._note(fault)
        except OperatorError as error:  # such as another service that has taken the ledger
            self._note(LedgerBroken(error.problem, remedy=error.remedy))
        else:
            self._forget_fault()

    def _adopt(self, opened: "asyncio.Future[LedgerStore]") -> None:
        """Take a store that was opened, however late: it has the lock, so nobody else can."""
        if opened.cancelled() or opened.exception() is not None:
            return
        if self._is_closed:
            opened.result().close()
        else:
            self._store = opened.result()

    def _note(self, fault: LedgerFault) -> None:
        if self._fault is None or self._fault.problem != fault.problem:
            logger.error("%s. %s", fault.problem, fault.remedy)
        self._fault = fault

    def _forget_fault(self) -> None:
        if self._fault is not None:
            logger.warning("the ledger works again; before: %s", self._fault.problem)
            self._fault = None

    async def _bounded(
        self,
        call: Callable[..., T],
        store: LedgerStore | None,
        seconds: float,
        at_end: "Callable[[asyncio.Future[T]], None]" = _retrieve,
    ) -> T:
        """Run a call in a thread; give up waiting after some seconds, for a thread can't be ended.

        Until it has ended by itself, no other call is begun. `at_end` gets how it ended, in time or
        later.
        """
        if self._pending:
            raise _unresponsive()
        future = asyncio.get_running_loop().run_in_executor(self._threads, call, store)
        future.add_done_callback(at_end)
        done, _ = await asyncio.wait([future], timeout=seconds)
        if done:
            return future.result()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if store is not None:
            store.interrupt()
        raise _unresponsive()


def _unresponsive() -> LedgerBroken:
    return LedgerBroken(
        "the ledger's disk or database does not respond",
        remedy="The operator must look at it. Requests without an Idempotency-Key are served "
        "meanwhile",
    )
