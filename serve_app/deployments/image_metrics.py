"""What becomes of each image, told to a meter, however it ends.

Knows no stages and no Ray. Time is the event loop's.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.core.errors import CallerError, DeadlineExceeded, Draining, Overloaded
from serve_app.core.service.metrics import (
    ACCEPTED,
    IMAGE_SECONDS,
    IMAGES,
    IN_TIME,
    ImageOutcome,
    Meter,
)

_PROMISED = (ImageOutcome.MADE, ImageOutcome.LATE, ImageOutcome.FAILED)


@contextmanager
def counting_outcome(meter: Meter) -> Iterator[None]:
    """The image that is made within has been counted once."""
    clock = asyncio.get_running_loop().time
    began, outcome = clock(), ImageOutcome.CANCELLED
    try:
        yield
        outcome = ImageOutcome.MADE
        meter.record(IMAGE_SECONDS, clock() - began)
    except Exception as error:
        outcome = outcome_of(error)
        raise
    finally:
        meter.record(IMAGES, outcome=outcome)
        if outcome in _PROMISED:
            meter.record(ACCEPTED)
        if outcome is ImageOutcome.MADE:
            meter.record(IN_TIME)


def outcome_of(error: Exception) -> ImageOutcome:
    """What an error makes of the image that it ends."""
    if isinstance(error, DeadlineExceeded):
        return ImageOutcome.LATE
    if isinstance(error, CallerError | Overloaded | Draining):
        return ImageOutcome.REFUSED
    return ImageOutcome.FAILED
