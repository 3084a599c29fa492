"""Clients of event streams that decide themselves how much they read, and when they leave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

_PIECE = 2**16  # bytes
_LONGEST = 2**26  # bytes between two marks


@dataclass(frozen=True, slots=True)
class RawStream:
    """One connection with an open response, of which nothing is read by itself."""

    _connection: socket.socket

    async def until(self, mark: bytes) -> bytes:
        """Read on and return everything up to a mark; raise `EOFError` if it does not come."""
        loop, found = asyncio.get_running_loop(), bytearray()
        while mark not in found[-_PIECE - len(mark) :]:
            piece = await loop.sock_recv(self._connection, _PIECE)
            if not piece or len(found) > _LONGEST:
                raise EOFError(bytes(found[-1000:]))
            found += piece
        return bytes(found)

    async def rest(self) -> bytes:
        """Read to the end of the response, and return it."""
        return await self.until(b"\r\n0\r\n\r\n")


@asynccontextmanager
async def raw_stream(
    port: int,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    read_buffer: int = 0,
) -> AsyncIterator[RawStream]:
    """Send a request to this machine; leaving the context closes its connection.

    `read_buffer` is what the system may take for a client that does not read, in bytes; 0 leaves
    that to the system.
    """
    content = b"" if body is None else json.dumps(body).encode()
    sent = {"Host": "localhost", "Content-Type": "application/json", **(headers or {})}
    sent["Content-Length"] = str(len(content))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    head = "\r\n".join((*lines, "", ""))
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        if read_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, head.encode() + content)
        yield RawStream(connection)
