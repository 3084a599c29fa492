"""A load generator: sends a trace of requests to the service over HTTP, each at its time.

No Ray: it needs only a port. It requests sizes in the small pixels of `testing.sleeping_stage`.
"""

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serve_app.simulator.traces import Arrival
from serve_app.testing.sleeping_networks import SCALE

_MAX_OPEN_REQUESTS = 512
_TIMEOUT = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Response:
    """How the service answered one request of a trace."""

    arrival: Arrival
    seconds: float  # from the time of the arrival to the response
    status: int  # 0 for a connection that failed

    def in_flight(self, at: float) -> bool:
        """Return whether the request was sent by that time, and not answered yet."""
        return self.arrival.at <= at < self.arrival.at + self.seconds


def replay(trace: Sequence[Arrival], port: int) -> list[Response]:
    """Request every image of the trace at its time, and return the responses in the same order."""
    start = time.perf_counter() + 0.5

    def send(number: int) -> Response:
        arrival = trace[number]
        due = start + arrival.at
        time.sleep(max(0.0, due - time.perf_counter()))
        status = _post(port, arrival, number)
        return Response(arrival, time.perf_counter() - due, status)

    with ThreadPoolExecutor(_MAX_OPEN_REQUESTS) as pool:
        return list(pool.map(send, range(len(trace))))


def _post(port: int, arrival: Arrival, number: int) -> int:
    """Request an image, and return the HTTP status, or 0 if the connection fails."""
    body = {
        "prompt": f"picture {number}",
        "seed": number,
        "imageCount": 1,
        "steps": arrival.steps,
        "width": arrival.width // SCALE,
        "height": arrival.height // SCALE,
        "guidanceScale": arrival.guidance,
        "handoff": arrival.handoff,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/generate", json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        return 0
    finally:
        connection.close()
