"""A port of this machine that nobody listens on now.

Knows no services.
"""

import socket


def free_port() -> int:
    """It may be taken by the next moment: ask for it when it is needed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
