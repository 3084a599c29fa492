"""Those who are sent away come back one after the other."""

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.virtual_queue import MAX_BOOKED_S, VirtualQueue, bounded_retry

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


def test_a_client_that_ignores_its_retry_after_books_no_more_than_a_bound() -> None:
    queue = VirtualQueue()
    for second in range(600):
        queue, retry_after = queue.drain(float(second), {}).book(ADA, 4.0, 2.0, {})
        assert retry_after <= 2 + MAX_BOOKED_S / 0.9 + 1
        assert sum(queue.booked.values()) <= MAX_BOOKED_S
    assert retry_after > MAX_BOOKED_S
    later = queue.drain(600 + MAX_BOOKED_S / 0.9, {})
    assert later.book(ADA, 4.0, 2.0, {})[1] == 2


def test_the_bound_of_a_caller_is_that_of_all_processes() -> None:
    queue, retry_after = VirtualQueue().book(ADA, 9.0, 5.0, {ADA: MAX_BOOKED_S - 3})
    assert queue.booked == {ADA: 3.0}
    queue, again = queue.book(ADA, 9.0, 5.0, {ADA: MAX_BOOKED_S - 3})
    assert queue.booked == {ADA: 3.0}
    assert again >= retry_after


def test_ever_new_callers_book_no_more_than_an_hour_under_few_names() -> None:
    queue = VirtualQueue()
    for number in range(1000):
        queue, _ = queue.drain(number / 100, {}).book(Caller(f"new {number}"), 4.0, 2.0, {})
        assert len(queue.booked) <= 201
        assert sum(queue.booked.values()) <= 3600 * 0.9 + 1e-6
    assert queue.drain(10.0 + 3601.0, {}).booked == {}


@pytest.mark.parametrize(
    ("seconds", "retry_after"),
    [(0, 1), (0.2, 1), (12.3, 13), (119.5, 120), (9000, 3600), (float("inf"), 3600)],
)
def test_a_retry_is_within_a_second_and_an_hour(seconds: float, retry_after: int) -> None:
    assert bounded_retry(seconds) == retry_after
