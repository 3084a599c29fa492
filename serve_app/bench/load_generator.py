"""A trace, played through the service over HTTP as it was written.

Knows no Ray: only an address. Sizes are asked for in the small pixels of `bench.sleeping`.
"""

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serve_app.simulator.traces import Arrival
from serve_app.testing.sleeping_stage import SCALE

_AT_ONCE = 512  # requests that may be open
_LONGEST = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Response:
    """What became of an image."""

    arrival: Arrival
    seconds: float  # from when it was to be asked for to its answer
    status: int

    def under_way(self, at: float) -> bool:
        """Whether it was asked for by then, and had no answer yet."""
        return self.arrival.at <= at < self.arrival.at + self.seconds


def replay(trace: Sequence[Arrival], port: int) -> list[Response]:
    """Every image of the trace was asked for in its time, and has its answer."""
    began = time.perf_counter() + 0.5

    def ask(number: int) -> Response:
        arrival = trace[number]
        due = began + arrival.at
        time.sleep(max(0.0, due - time.perf_counter()))
        status = _post(port, arrival, number)
        return Response(arrival, time.perf_counter() - due, status)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, range(len(trace))))


def _post(port: int, arrival: Arrival, number: int) -> int:
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LONGEST)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/generate", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()
