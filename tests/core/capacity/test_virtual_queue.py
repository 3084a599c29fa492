"""Those who are sent away come back one after the other."""

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.virtual_queue import VirtualQueue, bounded_retry

ADA, BEA = Caller("ada"), Caller("bea")


def retries(count: int, others: dict[Caller, float] | None = None) -> list[int]:
    """Return the times that jobs of nine seconds each are sent away for, one after the other."""
    queue, seconds = VirtualQueue(), []
    for _ in range(count):
        queue, retry_after = queue.book(ADA, 9.0, 5.0, others or {})
        seconds.append(retry_after)
    return seconds


def test_each_is_sent_behind_those_before_it_at_nine_tenths_of_the_rate() -> None:
    assert retries(4) == [5, 15, 25, 35]


def test_those_whom_another_process_sent_away_come_first() -> None:
    assert retries(2, {ADA: 18.0}) == [25, 35]


def test_another_caller_waits_only_for_its_fair_share_of_them() -> None:
    queue = VirtualQueue({ADA: 900.0})
    _, retry_after = queue.book(BEA, 9.0, 5.0, {})
    assert retry_after == 15


def test_the_queue_drains_with_time_and_shares_the_rate_with_other_processes() -> None:
    queue = VirtualQueue({ADA: 90.0}, at=10.0)
    assert queue.drain(20.0, {}).booked == {ADA: pytest.approx(81.0)}
    assert queue.drain(20.0, {BEA: 90.0}).booked == {ADA: pytest.approx(85.5)}
    assert queue.drain(1000.0, {}).booked == {}
    assert VirtualQueue().drain(5.0, {}) == VirtualQueue({}, 5.0)


@pytest.mark.parametrize(
    ("seconds", "retry_after"),
    [(0, 1), (0.2, 1), (12.3, 13), (119.5, 120), (9000, 3600), (float("inf"), 3600)],
)
def test_a_retry_is_within_a_second_and_an_hour(seconds: float, retry_after: int) -> None:
    assert bounded_retry(seconds) == retry_after
