"""`Load`: requests that are sent at their times, whether or not earlier ones were answered.

An open loop: a slow service gets no fewer requests. Each request has a connection of its own.
"""

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from math import ceil
from types import TracebackType
from typing import Any, Self

import aiohttp

from serve_app.testing.faulty_service import ORIGIN

_TICK_S = 0.01  # seconds
_PIECES = 10  # of a body that is sent over some time
PATIENCE = 600.0  # seconds after which a caller without a time of its own gives up


@dataclass(frozen=True, slots=True)
class Call:
    """One request, `at` seconds after it was handed to the load."""

    body: Mapping[str, Any]
    at: float = 0.0
    route: str = "/generate"
    caller: str | None = None  # an API key
    key: str | None = None  # an Idempotency-Key
    leaves_after: float | None = None  # seconds after which the client vanishes
    padding: int = 0  # bytes of white space in the body
    upload: float = 0.0  # seconds over which the body is sent
    group: str = ""  # for the test's own use


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended. A status of 0 is a connection that failed, as `failure` says."""

    call: Call
    sent: float  # time.monotonic()
    seconds: float
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    failure: str = ""
    left: bool = False  # the client vanished on purpose

    @property
    def ended(self) -> float:
        """When the answer was there, in time.monotonic()."""
        return self.sent + self.seconds


class Load:
    """Many clients of one service, on a thread of their own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pending: list[Future[Answer]] = []
        self.lags: list[float] = []  # seconds by which the clients' own thread was late

    def __enter__(self) -> Self:
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(_open_session(), self._loop).result()
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        for future in self._pending:
            future.cancel()
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def send(self, calls: Iterable[Call]) -> list[Future[Answer]]:
        """Begin to send the calls, each at its time from now; return their answers to come."""
        start = time.monotonic()
        sent = [
            asyncio.run_coroutine_threadsafe(self._send(call, start + call.at), self._loop)
            for call in calls
        ]
        self._pending += sent
        return sent

    def pending(self) -> list[Future[Answer]]:
        """Return the answers to all calls so far, come or to come."""
        return list(self._pending)

    def open(self) -> int:
        """Return how many of all calls have no answer yet."""
        return sum(not future.done() for future in self._pending)

    def answers(self, timeout: float = PATIENCE) -> list[Answer]:
        """Return the answers to all calls so far, in the order of sending."""
        _, missing = wait(self._pending, timeout)
        assert not missing, f"{len(missing)} requests have no answer after {timeout:.0f} s"
        return [future.result() for future in self._pending]

    async def _watch(self) -> None:
        while True:
            due = self._loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.lags.append(self._loop.time() - due)

    async def _send(self, call: Call, due: float) -> Answer:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
        content = _content(call)
        if call.caller is not None:
            headers["Authorization"] = f"Bearer {call.caller}"
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        sent, limit = time.monotonic(), call.leaves_after or PATIENCE
        try:
            async with (
                asyncio.timeout(limit),
                self._session.post(
                    f"{self._address}{call.route}", data=content, headers=headers
                ) as response,
            ):
                body = await response.read()
        except TimeoutError:
            seconds = time.monotonic() - sent
            left = call.leaves_after is not None
            return Answer(call, sent, seconds, failure="no answer", left=left)
        except aiohttp.ClientError as error:
            seconds = time.monotonic() - sent
            return Answer(call, sent, seconds, failure=type(error).__name__)
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(call, sent, time.monotonic() - sent, response.status, names, body)


def _content(call: Call) -> io.BytesIO | AsyncGenerator[bytes, None]:
    """Return the body of a call as bytes, or the pieces of it that are sent one after the other."""
    space = " " * (call.padding // max(1, len(call.body)))
    text = json.dumps(call.body, separators=("," + space, ": ")).encode()
    return _pieces(text, call.upload) if call.upload else io.BytesIO(text)


async def _pieces(text: bytes, seconds: float) -> AsyncGenerator[bytes, None]:
    size = ceil(len(text) / _PIECES)
    for start in range(0, len(text), size):
        yield text[start : start + size]
        await asyncio.sleep(seconds / _PIECES)


async def _open_session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


def steady(bodies: Iterable[Mapping[str, Any]], rate: float, **options: Any) -> list[Call]:
    """Return one call for each body, `rate` of them a second."""
    return [Call(body, at=number / rate, **options) for number, body in enumerate(bodies)]
