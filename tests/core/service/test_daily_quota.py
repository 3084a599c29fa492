"""Days begin at midnight UTC, wherever the service runs."""

from datetime import UTC, datetime

import pytest

from serve_app.core.service.daily_quota import day_of, seconds_left_of_day


@pytest.mark.parametrize(
    ("time", "day", "left"),
    [
        ("2026-11-29T00:00:00", "2026-11-29", 86_400),
        ("2026-11-29T23:59:58", "2026-11-29", 2),
        ("2028-02-29T12:00:00", "2028-02-29", 43_200),
    ],
)
def test_a_day_is_that_of_utc_and_ends_at_its_midnight(time: str, day: str, left: float) -> None:
    now = datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp()
    assert day_of(now) == day
    assert seconds_left_of_day(now) == left
