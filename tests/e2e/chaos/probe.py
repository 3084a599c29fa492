"""`Probe`: /health as a balancer asks for it, on a connection of its own, all the time."""

import http.client
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PAUSE = 0.1  # seconds between two calls
_TIMEOUT = 5.0  # seconds after which a call counts as failed


class Probe:
    """Calls a route again and again until it is closed."""

    def __init__(self, address: str, route: str = "/health") -> None:
        self._where = urlsplit(f"{address}{route}")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seconds: list[float] = []  # of every answer
        self.failed = 0  # calls without an answer of 200
        self.longest_silence = 0.0  # seconds between two answers of 200

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join(2 * _TIMEOUT)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.wait(_PAUSE):
            started = time.monotonic()
            is_good = self._ask()
            now = time.monotonic()
            if is_good:
                self.seconds.append(now - started)
                last = now
            else:
                self.failed += 1
            self.longest_silence = max(self.longest_silence, now - last, now - started)

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection(
            str(self._where.hostname), self._where.port, timeout=_TIMEOUT
        )
        try:
            connection.request("GET", self._where.path)
            response = connection.getresponse()
            response.read()
            return response.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
