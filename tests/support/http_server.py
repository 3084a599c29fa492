"""An API on a real port of this machine, for clients that bring their own HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.support.waiting import until


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
