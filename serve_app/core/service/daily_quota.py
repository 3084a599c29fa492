"""Days of a caller's quota, which are those of UTC. Times are seconds since the epoch."""

from datetime import UTC, datetime

_DAY = 86_400  # seconds


def day_of(now: float) -> str:
    """Return the day of a time, as in 2026-11-29."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def seconds_left_of_day(now: float) -> float:
    """Return the seconds until the next day begins."""
    return _DAY - now % _DAY
