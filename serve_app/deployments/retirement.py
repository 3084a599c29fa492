"""`RetirementWatch`: notices that Serve retires this replica, while its requests go on.

Serve says nothing to a replica that it retires: it waits for the requests under way, and ends the
process after `graceful_shutdown_timeout_s`. The destructor comes after the last request, so never
where one takes too long. But Serve polls each replica until it retires it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import Context

logger = logging.getLogger("aura.ingress")

POLLED_EVERY_S = 1.0  # that Serve asks for routing statistics
_SILENT_S = 4.0  # without a poll: the controller is away, or retires this replica
_SAVE_EVERY_S = 5.0


class RetirementWatch:
    """Calls `save` again and again from when Serve has stopped to poll, until it polls anew."""

    def __init__(
        self,
        save: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._save = save
        self._clock = clock
        self._sleep = sleep
        self._last_poll: float | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether Serve has stopped to poll: this replica may retire."""
        return self._last_poll is not None and self._clock() - self._last_poll > _SILENT_S

    def note_poll(self) -> None:
        """Take note that Serve has polled the replica; begin to watch with the first poll."""
        self._last_poll = self._clock()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), context=Context())

    async def _watch(self) -> None:
        while True:
            await self._sleep(POLLED_EVERY_S)
            if self.is_silent:
                try:
                    await self._save()
                except Exception:  # the next try may succeed
                    logger.exception("the jobs of a retiring replica were not saved")
                await self._sleep(_SAVE_EVERY_S - POLLED_EVERY_S)
