"""`CallSlots`: at most so many calls at once, of callers in turn."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.core.caller import Caller


class CallSlots:
    """Slots for calls. A free one goes to the caller who has waited longest for a turn.

    So a caller with many calls delays another one's by one call at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def taken(self, caller: Caller) -> AsyncIterator[None]:
        """Wait for a slot, and have it for the duration of the block."""
        await self._acquire(caller.name)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, name: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came, and nobody is there to take it
                self._release()
            raise

    def _release(self) -> None:
        """Pass a slot to whoever is next; those who have left are passed over."""
        while self._waiting:
            name, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[name] = turns  # behind the other callers
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
