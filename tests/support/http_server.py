"""An API on a real port of this machine, for clients that bring their own HTTP."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.support.waiting import until, until_async


@contextmanager
def serving(api: ASGIApp, parser: str = "auto") -> Iterator[str]:
    """Yield the address of a running API; `parser` is uvicorn's: auto, httptools or h11."""
    config = uvicorn.Config(
        api, host="127.0.0.1", port=0, log_config=None, lifespan="off", http=parser
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, timeout=30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@asynccontextmanager
async def serving_in_loop(api: ASGIApp, send_buffer: int = 0) -> AsyncIterator[int]:
    """Serve an API in the running event loop; yield its port on 127.0.0.1.

    `send_buffer` is what the system may hold of each response that its client has not taken, in
    bytes; 0 leaves that to the system.
    """
    server = uvicorn.Server(uvicorn.Config(api, log_config=None, lifespan="off", backlog=1024))
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        if send_buffer:  # which its connections inherit
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        running = asyncio.create_task(server.serve([listening]))
        await until_async(lambda: server.started)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running
