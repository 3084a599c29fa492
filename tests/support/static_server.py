"""An HTTP server of this machine that gives every request the same response."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StaticServer(ThreadingHTTPServer):
    """Answers every GET with `status` and `content`, which may change at any time."""

    status = 200
    content = b'{"status":"alive"}'


class _Handler(BaseHTTPRequestHandler):
    server: StaticServer

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def static_server(host: str, port: int = 0) -> Iterator[StaticServer]:
    """Run a server for the duration of the block; port 0 chooses a free one."""
    with StaticServer((host, port), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
