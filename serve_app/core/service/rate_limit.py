"""A caller's rate limit: a token bucket whose tokens are megapixel-steps.

No callers and no clock. It is the token bucket of RFC 2697's single-rate meter, with one
difference: a request that costs more than the whole bucket waits for a full one and then goes into
debt, because otherwise it would wait for ever.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What every caller may use: `rate` tokens a second, and `burst` tokens at once."""

    rate: float
    burst: float


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """The tokens that one caller had at a time; a level below zero is debt."""

    level: float
    time: float  # seconds


def consume(
    limit: RateLimit, bucket: TokenBucket | None, cost: float, now: float
) -> tuple[TokenBucket, float]:
    """Take a request's cost from a bucket.

    Return the next bucket and 0, or, where there is too little, the bucket as it is now and the
    seconds to wait. A caller without a bucket has a full one; a negative cost is a refund.
    """
    level = limit.burst
    if bucket is not None:
        level = min(level, bucket.level + (now - bucket.time) * limit.rate)
    lacking = min(cost, limit.burst) - level
    if lacking > 0:
        return TokenBucket(level, now), lacking / limit.rate
    return TokenBucket(level - cost, now), 0.0


def is_full(limit: RateLimit, bucket: TokenBucket, now: float) -> bool:
    """Return whether the bucket has filled up again, so that it need not be kept."""
    return bucket.level + (now - bucket.time) * limit.rate >= limit.burst
