import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.service.rate_limit import RateLimit, TokenBucket, consume, is_full

MINUTE = RateLimit(rate=1.0, burst=60.0)


def test_a_new_caller_has_a_full_bucket() -> None:
    assert consume(MINUTE, None, 60, now=5) == (TokenBucket(0, 5), 0)


def test_too_few_tokens_cost_nothing_and_say_how_long_to_wait() -> None:
    bucket, wait = consume(MINUTE, TokenBucket(10, time=0), 30, now=5)
    assert wait == 15
    assert bucket == TokenBucket(15, 5)
    assert consume(MINUTE, bucket, 30, now=20)[1] == 0
    assert consume(MINUTE, bucket, 30, now=19)[1] > 0


def test_a_bucket_never_holds_more_than_its_size() -> None:
    bucket, _ = consume(MINUTE, TokenBucket(0, time=0), 0, now=1_000_000)
    assert bucket.level == 60


def test_a_request_above_the_burst_waits_for_a_full_bucket_and_goes_into_debt() -> None:
    assert consume(MINUTE, TokenBucket(59, time=0), 100, now=0)[1] == 1
    bucket, wait = consume(MINUTE, None, 100, now=0)
    assert (bucket.level, wait) == (-40, 0)
    assert consume(MINUTE, bucket, 1, now=40)[1] == 1
    assert consume(MINUTE, bucket, 1, now=41)[1] == 0


def test_a_bucket_is_full_again_after_a_while() -> None:
    assert not is_full(MINUTE, TokenBucket(0, time=0), now=59)
    assert is_full(MINUTE, TokenBucket(0, time=0), now=60)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 200)), max_size=50))
def test_in_the_long_run_no_caller_gets_more_than_the_rate(
    requests: list[tuple[float, float]],
) -> None:
    now, taken, bucket = 0.0, 0.0, None
    for pause, cost in requests:
        now += pause
        bucket, wait = consume(MINUTE, bucket, cost, now)
        taken += cost if wait == 0 else 0
    assert taken <= MINUTE.burst + MINUTE.rate * now + 200 + 1e-6


def test_debt_is_bounded_by_one_request() -> None:
    bucket, _ = consume(MINUTE, None, 500, now=0)
    assert consume(MINUTE, bucket, 500, now=100)[1] == pytest.approx(400)
