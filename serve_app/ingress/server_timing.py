"""Where the time of one request went, told in a Server-Timing header (W3C Server Timing).

Knows no routes. Browsers show the header in their developer tools; `bench http` reads it.
"""

import time
from collections.abc import Callable


class Stopwatch:
    """The laps of one request, from the moment it was made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        """What came since the last lap is over, and is called so."""
        now = self._clock()
        self._laps.append((name, (now - self._since) * 1000))
        self._since = now

    @property
    def header(self) -> str:
        """The laps in milliseconds, in order."""
        return ", ".join(f"{name};dur={duration:.2f}" for name, duration in self._laps)
