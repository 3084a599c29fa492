import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.service.rate_limit import Bucket, RateLimit, draw, is_full

MINUTE = RateLimit(rate=1.0, size=60.0)


def test_a_new_caller_has_a_full_bucket() -> None:
    assert draw(MINUTE, None, 60, now=5) == (Bucket(0, 5), 0)


def test_who_has_too_little_is_told_when_there_is_enough_and_loses_nothing() -> None:
    bucket, wait = draw(MINUTE, Bucket(10, at=0), 30, now=5)
    assert wait == 15
    assert bucket == Bucket(15, 5)
    assert draw(MINUTE, bucket, 30, now=20)[1] == 0
    assert draw(MINUTE, bucket, 30, now=19)[1] > 0


def test_a_bucket_never_holds_more_than_its_size() -> None:
    bucket, _ = draw(MINUTE, Bucket(0, at=0), 0, now=1_000_000)
    assert bucket.level == 60


def test_what_is_dearer_than_the_bucket_waits_for_a_full_one_and_goes_into_debt() -> None:
    assert draw(MINUTE, Bucket(59, at=0), 100, now=0)[1] == 1
    bucket, wait = draw(MINUTE, None, 100, now=0)
    assert (bucket.level, wait) == (-40, 0)
    assert draw(MINUTE, bucket, 1, now=40)[1] == 1
    assert draw(MINUTE, bucket, 1, now=41)[1] == 0


def test_a_bucket_is_full_again_after_a_while() -> None:
    assert not is_full(MINUTE, Bucket(0, at=0), now=59)
    assert is_full(MINUTE, Bucket(0, at=0), now=60)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 200)), max_size=50))
def test_in_the_long_run_nobody_gets_more_than_the_rate(asked: list[tuple[float, float]]) -> None:
    now, got, bucket = 0.0, 0.0, None
    for later, cost in asked:
        now += later
        bucket, wait = draw(MINUTE, bucket, cost, now)
        got += cost if wait == 0 else 0
    assert got <= MINUTE.size + MINUTE.rate * now + 200 + 1e-6


def test_debt_is_bounded_by_one_request() -> None:
    bucket, _ = draw(MINUTE, None, 500, now=0)
    assert draw(MINUTE, bucket, 500, now=100)[1] == pytest.approx(400)
