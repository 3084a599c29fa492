"""One request to an ASGI app in this event loop, whose response is read while it is made."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class SentEvent:
    """A server-sent event, read."""

    name: str
    data: dict[str, Any]
    id: str = ""


@dataclass
class Exchange:
    """What an app has sent so far, and the client's end of the connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)  # set when the client disconnects
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _read: int = 0  # bytes of the body

    async def started(self) -> int:
        """Return the status once it is known."""
        while not self.status:
            await self._change()
        return self.status

    async def next_event(self) -> SentEvent:
        """Return the next event; comments are passed over. Raises `EOFError` at the end."""
        while True:
            end = self.body.find(b"\r\n\r\n", self._read)
            if end >= 0:
                block, self._read = self.body[self._read : end], end + 4
                lines = [line for line in block.decode().split("\r\n") if line[:1] != ":"]
                if lines:
                    found = dict(line.split(": ", 1) for line in lines)
                    data = json.loads(found["data"])
                    return SentEvent(found["event"], data, found.get("id", ""))
            elif self.ended:
                raise EOFError
            else:
                await self._change()

    async def events(self) -> list[SentEvent]:
        """Return all events that are left."""
        found = []
        try:
            while True:
                found.append(await self.next_event())
        except EOFError:
            return found

    async def _change(self) -> None:
        async with asyncio.timeout(30):
            await self.changed.wait()
        self.changed.clear()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)
        self.changed.set()


@asynccontextmanager
async def exchange(
    api: ASGIApp,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Exchange]:
    """Send a request and yield its exchange; leaving the context disconnects the client."""
    content = b"" if body is None else json.dumps(body).encode()
    sent = {"host": "localhost", "content-length": str(len(content)), **(headers or {})}
    if body is not None:
        sent.setdefault("content-type", "application/json")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }
    found, bodies = Exchange(), [content]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await found.left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        await api(scope, receive, found._send)

    request = asyncio.create_task(run())
    try:
        yield found
    finally:
        found.left.set()
        async with asyncio.timeout(30):
            await request
