"""`NetworkLink`: a way to a server that a test can cut, silence and mend, as real networks do."""

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 16


class NetworkLink:
    """Forwards connections from a port of its own to a server.

    `cut` ends all connections and refuses new ones; `silence` keeps connections open and forwards
    nothing more; `mend` lets new connections through.
    """

    def __init__(self, address: str) -> None:
        self._target = _host_and_port(address)
        self._open: set[socket.socket] = set()
        self._speaking = threading.Event()
        self._speaking.set()
        self._listener = self._listen(0)
        self._port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "NetworkLink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        _close(self._listener)
        self.drop()

    def drop(self) -> None:
        """End every connection; new ones come through."""
        for connection in list(self._open):
            _close(connection)
        self._speaking.set()

    def silence(self) -> None:
        """Forward nothing more, on connections that stay open."""
        self._speaking.clear()

    def mend(self) -> None:
        """Let connections through again."""
        self._listener = self._listen(self._port)

    def lead_to(self, address: str) -> None:
        """Forward new connections to another server."""
        self._target = _host_and_port(address)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._open |= {near, far}
                for source, target in ((near, far), (far, near)):
                    forward = threading.Thread(
                        target=self._forward, args=(source, target), daemon=True
                    )
                    forward.start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one of them is closed
            while chunk := source.recv(_CHUNK_BYTES):
                self._speaking.wait()
                target.sendall(chunk)
        for connection in (source, target):
            _close(connection)
            self._open.discard(connection)


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or 80


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
