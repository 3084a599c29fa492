"""`Watchdog`: ends a replica's process that hangs, if Serve has not replaced it by then.

Serve checks a stage replica every `HEALTH_CHECK_PERIOD`, waits `HEALTH_CHECK_TIMEOUT` for the
result, and replaces it after three failures in a row: about 6 s after a turn is overdue, and 35 s
after the event loop hangs. If Serve's controller is away, or can't end the process, the process
ends itself. No Ray, and nothing that the engine or the event loop can block.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from serve_app.core.capacity.overdue import CurrentTurn

logger = logging.getLogger("aura.watchdog")

HEALTH_CHECK_PERIOD = 2.0  # seconds
HEALTH_CHECK_TIMEOUT = 10.0  # seconds
EXIT_STATUS = 70  # of a process that the watchdog ends: EX_SOFTWARE of sysexits.h
_TURN_GRACE = 30.0  # seconds that Serve has, from when a turn is overdue
_LOOP_LIMIT = 60.0  # seconds that the event loop may be held up
_TICK = 1.0  # seconds
_LOG_S = 1.0  # seconds that the last line may take


def end_process(reason: str) -> None:
    """End this process at once, with a line in the log unless a thread that hangs has its lock."""
    try:
        log = threading.Thread(target=_log_end, args=(reason,), name="watchdog-log", daemon=True)
        log.start()
        log.join(_LOG_S)
    finally:
        os._exit(EXIT_STATUS)


def _log_end(reason: str) -> None:
    logger.critical("this replica ends its own process: %s", reason)
    for handler in logging.getLogger().handlers + logger.handlers:
        handler.flush()
    sys.stderr.flush()


class Watchdog:
    """Watches the engine's current turn and the event loop, from a thread of its own.

    A process that is stopped for a while, and one whose threads can't run, sees time jump. So each
    tick counts for two seconds at most.
    """

    def __init__(
        self,
        current_turn: Callable[[], CurrentTurn | None],
        end: Callable[[str], None] = end_process,
    ) -> None:
        self._current_turn, self._end = current_turn, end
        self._turn: CurrentTurn | None = None
        self._turn_seconds = 0.0  # that the turn has taken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_seconds = 0.0  # since the event loop has run
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch until `stop`."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Let the process be."""
        self._stopped.set()

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the event loop too, from now on."""
        self._loop = loop

    def tick(self, seconds: float) -> None:
        """Look at the engine and the event loop after that many seconds more."""
        seconds = min(seconds, 2 * _TICK)
        turn = self._current_turn()
        self._turn_seconds = self._turn_seconds + seconds if turn is self._turn else 0.0
        self._turn = turn
        if turn is not None and self._turn_seconds > turn.limits.overdue + _TURN_GRACE:
            self._end(f"a turn has taken {self._turn_seconds:.0f} s")
        self._loop_seconds += seconds
        if self._loop is None or self._loop.is_closed():
            self._loop_seconds = 0.0
            return
        if self._loop_seconds > _LOOP_LIMIT:
            self._end(f"the event loop has been held up for {self._loop_seconds:.0f} s")
        self._loop.call_soon_threadsafe(self._loop_runs)

    def _loop_runs(self) -> None:
        self._loop_seconds = 0.0

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(_TICK):
            now = time.monotonic()
            self.tick(now - before)
            before = now
