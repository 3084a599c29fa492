"""A receiver of webhooks on this machine, which answers as a test says."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = bytes(range(32))
WHSEC = "whsec_" + b64encode(SECRET).decode()


@dataclass(frozen=True)
class Delivery:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: str


class WebhookReceiverServer(ThreadingHTTPServer):
    """Keeps what it gets. `answers` are the statuses of the next requests, then it is 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.deliveries: list[Delivery] = []
        self.answers: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        """An address of it."""
        return f"http://127.0.0.1:{self.server_port}/hook?of=aura"


class _Handler(BaseHTTPRequestHandler):
    server: WebhookReceiverServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.deliveries.append(Delivery(self.path, dict(self.headers), body))
        self.server.may_answer.wait()
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def webhook_receiver() -> Iterator[WebhookReceiverServer]:
    """Run a receiver for the duration of the block."""
    with WebhookReceiverServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
            thread.join()
