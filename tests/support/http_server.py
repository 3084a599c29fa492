"""An API on a real port of this machine, for clients that speak HTTP themselves."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def serving(api: ASGIApp, parser: str = "auto") -> Iterator[str]:
    """The address of the API while the block runs; `parser` is uvicorn's: httptools or h11."""
    config = uvicorn.Config(
        api, host="127.0.0.1", port=0, log_config=None, lifespan="off", http=parser
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
