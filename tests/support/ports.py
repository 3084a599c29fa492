"""Ports for servers that tests start."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def quiet_port() -> int:
    """Return a port of which, and of the next ones, the system gives none to anybody by itself.

    Where a test expects a certain port to be free, no other one may get it meanwhile.
    """
    with socket.socket() as listener:
        while True:
            port = random.randrange(20_000, 30_000, 10)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                return port
