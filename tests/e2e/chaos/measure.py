"""What an undisturbed service does, to compare with, and figures as the table shows them."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tests.e2e.chaos.load import Answer, Call, Load
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import Kind, by_kind, quantile


def together(service: ChaosService, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Ask for images at once, wait for all of them, and return the answers: all are made."""
    with Load(service.address) as load:
        load.send(Call(body) for body in bodies)
        answers = load.answers()
    assert len(by_kind(answers, Kind.MADE)) == len(answers)
    return answers


def capacity(service: ChaosService, bodies: Sequence[Mapping[str, Any]]) -> float:
    """Return the images per second of a service that has more to do than it can.

    It is the rate between the first quarter of the images and the last one, so that neither the
    first images' way through two stages counts nor the time when batches are no longer full.
    """
    ends = sorted(answer.ended for answer in together(service, bodies))
    first, last = len(ends) // 4, len(ends) - len(ends) // 4
    return (last - first) / (ends[last - 1] - ends[first - 1])


def spread(values: Sequence[float]) -> str:
    """Return the median and the 99th percentile of seconds as text."""
    if not values:
        return "none"
    return f"p50 {quantile(values, 0.5):.3g} s, p99 {quantile(values, 0.99):.3g} s"


@contextmanager
def sampled(observe: Callable[[], Any], every: float = 0.5) -> Iterator[list[tuple[float, Any]]]:
    """Observe something again and again; yield the list of times and values as it grows."""
    points: list[tuple[float, Any]] = []
    closing = threading.Event()

    def run() -> None:
        while not closing.is_set():
            try:
                points.append((time.monotonic(), observe()))
            except Exception:  # what is observed may be dead
                points.append((time.monotonic(), None))
            closing.wait(every)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield points
    finally:
        closing.set()
        thread.join(30)
