"""How each image ends, recorded on a meter.

No stages and no Ray. Time is the event loop's.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.core.errors import CallerError, DeadlineExceeded, Draining, Overloaded
from serve_app.core.service.metrics import (
    IMAGE_DURATION,
    IMAGES,
    IMAGES_COMPLETED,
    IMAGES_ON_TIME,
    ImageOutcome,
    Meter,
)

_COMPLETED = (ImageOutcome.MADE, ImageOutcome.LATE, ImageOutcome.FAILED)


@contextmanager
def recorded_image(meter: Meter, model: str) -> Iterator[None]:
    """Record the outcome of the image that is made in this context, and its duration.

    `model` is a label, so it must be one of few names.
    """
    clock = asyncio.get_running_loop().time
    started, outcome = clock(), ImageOutcome.CANCELLED
    try:
        yield
        outcome = ImageOutcome.MADE
        meter.record(IMAGE_DURATION, clock() - started, model=model)
    except Exception as error:
        outcome = outcome_of(error)
        raise
    finally:
        meter.record(IMAGES, outcome=outcome, model=model)
        if outcome in _COMPLETED:
            meter.record(IMAGES_COMPLETED)
        if outcome is ImageOutcome.MADE:
            meter.record(IMAGES_ON_TIME)


def outcome_of(error: Exception) -> ImageOutcome:
    """Return the outcome of an image that an error ends."""
    if isinstance(error, DeadlineExceeded):
        return ImageOutcome.LATE
    if isinstance(error, CallerError | Overloaded | Draining):
        return ImageOutcome.REFUSED
    return ImageOutcome.FAILED
