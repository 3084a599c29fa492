"""Where the time of one request went, for the Server-Timing header (W3C Server Timing).

Browsers show the header in their developer tools, and `aura bench overhead` reads it.
"""

import time
from collections.abc import Callable


class Stopwatch:
    """The laps of one request, starting when the stopwatch is made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lap_start = clock()
        self._laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        """End the current lap under this name, and start the next one."""
        now = self._clock()
        self._laps.append((name, (now - self._lap_start) * 1000))
        self._lap_start = now

    @property
    def header(self) -> str:
        """The laps in milliseconds, in order."""
        return ", ".join(f"{name};dur={duration:.2f}" for name, duration in self._laps)
