"""How each image ends, recorded on a meter.

No stages and no Ray. Time is the event loop's.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.core.errors import CallerError, DeadlineExceeded, Draining, Overloaded
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.metrics import (
    GPU_WASTED,
    IMAGE_DURATION,
    IMAGES,
    IMAGES_COMPLETED,
    IMAGES_ON_TIME,
    ImageOutcome,
    Meter,
)

_COMPLETED = (ImageOutcome.MADE, ImageOutcome.LATE, ImageOutcome.FAILED)


@contextmanager
def recorded_image(meter: Meter, model: str, gpu_seconds: Callable[[], float]) -> Iterator[None]:
    """Record the outcome of the image that is made in this context, and its duration.

    `model` is a label, so it must be one of few names. `gpu_seconds` returns what its finished
    segments took: no replica knows that these were in vain where the image ends at a later one.
    """
    clock = asyncio.get_running_loop().time
    started, outcome, goes_on = clock(), ImageOutcome.CANCELLED, False
    try:
        yield
        outcome = ImageOutcome.MADE
        meter.record(IMAGE_DURATION, clock() - started, model=model)
    except Exception as error:
        outcome = outcome_of(error)
        goes_on = isinstance(error, TakenOver)
        raise
    finally:
        meter.record(IMAGES, outcome=outcome, model=model)
        if outcome in _COMPLETED:
            meter.record(IMAGES_COMPLETED)
        if outcome is ImageOutcome.MADE:
            meter.record(IMAGES_ON_TIME)
        elif not goes_on:
            meter.record(GPU_WASTED, gpu_seconds())


def outcome_of(error: Exception) -> ImageOutcome:
    """Return the outcome of an image that an error ends."""
    if isinstance(error, DeadlineExceeded):
        return ImageOutcome.LATE
    if isinstance(error, CallerError | Overloaded | Draining):
        return ImageOutcome.REFUSED
    return ImageOutcome.FAILED
