"""Loads: closed, with a number of clients that each wait for their answer, and open, on time.

In a closed loop a slow system gets fewer requests, so it shows what a system can do at most. In an
open loop requests come whatever the system does, as from independent users (Schroeder, Wierman and
Harchol-Balter 2006).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

from serve_app.bench.serve.answer import Answer
from serve_app.bench.serve.workload import ImageRequest

# Sends one request, gives up after some seconds, if there is a limit, and returns the outcome and
# the picture.
Send = Callable[[ImageRequest, float | None], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The answers to a load, and the seconds from the first request to the last answer."""

    answers: tuple[Answer, ...]
    seconds: float


def closed_loop(send: Send, requests: Sequence[ImageRequest], clients: int) -> LoadResult:
    """Send the requests in order, each as soon as one of the clients is free."""
    start = time.perf_counter()

    def answer(request: ImageRequest) -> Answer:
        began = time.perf_counter()
        outcome, picture = send(request, None)
        return Answer(request, time.perf_counter() - began, outcome, picture)

    with ThreadPoolExecutor(clients) as pool:
        answers = tuple(pool.map(answer, requests))
    return LoadResult(answers, time.perf_counter() - start)


def open_loop(
    send: Send,
    requests: Sequence[ImageRequest],
    times: Sequence[float],
    timeout: float | None = None,
) -> LoadResult:
    """Send each request at its time, in seconds from the start; give it up after `timeout`."""
    start = time.perf_counter() + 0.1

    def answer(request: ImageRequest, at: float) -> Answer:
        due = start + at
        time.sleep(max(0.0, due - time.perf_counter()))
        outcome, picture = send(request, timeout)
        return Answer(request, time.perf_counter() - due, outcome, picture)

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = tuple(pool.map(answer, requests, times))
    return LoadResult(answers, time.perf_counter() - start)


def poisson_times(count: int, rate: float, seed: int) -> list[float]:
    """Return the arrivals of a Poisson process, in the seconds in which it has `count` on average.

    Given that it has exactly as many, they are independent and uniform. So rounds differ in order
    and gaps, and not in their mean rate.
    """
    rng = Random(seed)
    return sorted(rng.uniform(0, count / rate) for _ in range(count))
