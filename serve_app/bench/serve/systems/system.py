"""`System`: what is measured, and the HTTP client that measures it."""

import http.client
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Protocol

from serve_app.bench.serve.answer import OK, TIMED_OUT
from serve_app.bench.serve.workload import ImageRequest

PNG = "image/png"
_JSON = {"Content-Type": "application/json", "Accept": PNG}


class System(Protocol):
    """A way to serve images, which can be started again and again."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def note(self) -> str:
        """How it is set up, in one line."""

    def start(self) -> AbstractContextManager["Client"]:
        """Start it, ready for requests. Raises `OperatorError` where it can't be."""


class Client(Protocol):
    """Sends requests to a system that runs."""

    def send(self, request: ImageRequest, timeout: float | None) -> tuple[str, bytes]:
        """Return the outcome and the picture as PNG; give up after `timeout` seconds."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A request as a system wants it."""

    path: str
    body: str
    method: str = "POST"


def plain_call(request: ImageRequest) -> HttpCall:
    """Return the call that the baselines without an interface of their own take."""
    return HttpCall("/generate", json.dumps(asdict(request)))


@dataclass(frozen=True, slots=True)
class HttpClient:
    """Sends requests over HTTP, each by a connection of its own, as independent users do.

    `call` says how to ask. Closing the connection is how it gives up. `deadline` is a header that
    names the seconds until then, for systems that know one.
    """

    port: int
    call: Callable[[ImageRequest, float | None], HttpCall]
    deadline: str = ""

    def send(self, request: ImageRequest, timeout: float | None) -> tuple[str, bytes]:
        """See `Client`."""
        call = self.call(request, timeout)
        headers = _JSON | ({self.deadline: f"{timeout:g}"} if self.deadline and timeout else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(call.method, call.path, call.body, headers)
            response = connection.getresponse()
            picture = response.read()
        except TimeoutError:
            return TIMED_OUT, b""
        except (OSError, http.client.HTTPException):
            return "connection lost", b""
        finally:
            connection.close()
        if response.status in (HTTPStatus.OK, HTTPStatus.CREATED):
            return OK, picture
        return f"HTTP {response.status}", b""
