"""Wait on what a test can only observe from outside, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_PAUSE = 0.01  # seconds between two observations


def until(condition: Callable[[], T | None], timeout: float = 30) -> T:
    """Return the first true value of `condition`; raise `TimeoutError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not true after {timeout:g} s: {condition}")
        time.sleep(_PAUSE)
    return value


async def until_async(condition: Callable[[], T | None], timeout: float = 30) -> T:
    """Do the same without blocking the event loop."""
    async with asyncio.timeout(timeout):
        while not (value := condition()):
            await asyncio.sleep(_PAUSE)
        return value


async def first_match(
    observe: Callable[[], Awaitable[T]], accept: Callable[[T], bool], timeout: float = 30
) -> T:
    """Observe until a value is accepted, and return it; raise `TimeoutError` after `timeout`."""
    async with asyncio.timeout(timeout):
        while not accept(value := await observe()):
            await asyncio.sleep(_PAUSE)
        return value
