"""A caller's allowance: a token bucket whose tokens are megapixel-steps, so that dear requests
cost more than cheap ones.

Knows no callers and no clock. Equals the token bucket of RFC 2697's single-rate meter, with one
difference: a request dearer than the whole bucket waits for a full one and then goes into debt,
where it would otherwise wait for ever.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What every caller may use: `rate` tokens a second, `size` at once."""

    rate: float
    size: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """What one caller has left at a moment, in tokens; below zero is debt."""

    level: float
    at: float  # seconds


def draw(
    allowance: RateLimit, bucket: Bucket | None, cost: float, now: float
) -> tuple[Bucket, float]:
    """The bucket after a request, and 0; or the bucket as it is now, and the seconds to wait.

    A caller without a bucket has a full one; a negative cost gives back.
    """
    level = allowance.size
    if bucket is not None:
        level = min(level, bucket.level + (now - bucket.at) * allowance.rate)
    lacking = min(cost, allowance.size) - level
    if lacking > 0:
        return Bucket(level, now), lacking / allowance.rate
    return Bucket(level - cost, now), 0.0


def is_full(allowance: RateLimit, bucket: Bucket, now: float) -> bool:
    """Whether the bucket has filled up again, so that it need not be remembered."""
    return bucket.level + (now - bucket.at) * allowance.rate >= allowance.size
