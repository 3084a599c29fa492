"""Requests reach a system as the load says: never more at once than clients, and on time."""

import threading
import time
from collections import Counter
from itertools import pairwise

import pytest

from serve_app.bench.serve.answer import OK, TIMED_OUT
from serve_app.bench.serve.load import closed_loop, open_loop, poisson_times
from serve_app.bench.serve.measurement import Measurement
from serve_app.bench.serve.workload import ImageRequest, Workload

WORKLOAD = Workload(steps=(4, 20), sizes=((64, 64), (64, 96)))


class CountingSystem:
    """Answers at once, or gives up, and knows how many it has had at once."""

    def __init__(self, together: int) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._full = threading.Barrier(together, timeout=10)

    def send(self, request: ImageRequest, timeout: float | None) -> tuple[str, bytes]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._full.wait()
        with self._lock:
            self._now -= 1
        return OK, b"a picture"


def test_every_kind_of_request_is_as_frequent_whatever_the_seed() -> None:
    for seed in (1, 2):
        kinds = Counter(request.kind for request in WORKLOAD.draw(12, seed))
        assert set(kinds.values()) == {3}
        assert len(kinds) == WORKLOAD.kinds
    assert WORKLOAD.draw(12, 1) == WORKLOAD.draw(12, 1) != WORKLOAD.draw(12, 2)
    assert {request.steps for request in WORKLOAD.draw(2, 1)} == {4, 20}


def test_a_closed_loop_has_as_many_requests_open_as_clients() -> None:
    system = CountingSystem(together=3)
    requests = WORKLOAD.draw(9, 1)
    result = closed_loop(system.send, requests, clients=3)
    assert system.most == 3
    assert [answer.request for answer in result.answers] == requests
    measured = Measurement.of(result)
    assert (measured.requests, len(measured.times), measured.errors) == (9, 9, {})
    assert measured.throughput == pytest.approx(9 / result.seconds)


def test_an_open_loop_sends_every_request_though_none_is_answered() -> None:
    system = CountingSystem(together=6)
    result = open_loop(system.send, WORKLOAD.draw(6, 1), [0.0] * 6)
    assert system.most == 6
    assert all(answer.is_ok for answer in result.answers)


def test_the_seconds_of_an_answer_count_from_when_its_request_was_due() -> None:
    begun = list[float]()

    def send(request: ImageRequest, timeout: float | None) -> tuple[str, bytes]:
        begun.append(time.perf_counter())
        return OK, b""

    result = open_loop(send, WORKLOAD.draw(2, 1), [0.0, 0.05])
    assert begun[1] - begun[0] > 0.01
    assert all(answer.seconds >= 0 for answer in result.answers)


def test_errors_are_counted_by_kind_and_have_no_latency() -> None:
    outcomes = iter([OK, "HTTP 500", TIMED_OUT, "HTTP 500"])
    result = closed_loop(lambda request, _: (next(outcomes), b""), WORKLOAD.draw(4, 1), clients=1)
    measured = Measurement.of(result)
    assert measured.errors == {"HTTP 500": 2, TIMED_OUT: 1}
    assert measured.in_time == 0.25
    assert measured.latency(0.95) == measured.mean == measured.times[0][1]


def test_arrivals_keep_their_mean_rate_and_not_their_gaps() -> None:
    times = poisson_times(400, rate=2.0, seed=3)
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 200
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.5, rel=0.05)
    assert spread == pytest.approx(0.5, rel=0.2)  # an exponential gap varies as much as it lasts
