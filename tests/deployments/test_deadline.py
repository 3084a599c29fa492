"""The time limit on a stream of events."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine

import pytest

from serve_app.core.errors import DeadlineExceeded
from serve_app.deployments.deadline import Deadline
from tests.support.stage_doubles import JumpingLoop


class Stream:
    """Yields 1 and 2, then waits for `go`, then yields 3; puts the loop's clock forward."""

    def __init__(self, *, seconds: float = 0) -> None:
        self.go = asyncio.Event()
        self.seconds = seconds  # that pass before the first event
        self.closed = False

    async def events(self) -> AsyncGenerator[int, None]:
        try:
            await pass_time(self.seconds)
            yield 1
            yield 2
            await self.go.wait()
            yield 3
        finally:
            self.closed = True


async def pass_time(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    loop.offset += seconds
    await asyncio.sleep(0.001)  # a wait in which timers that are due now can fire


def run(work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)


def test_events_in_time_pass_and_their_stream_is_closed_at_its_end() -> None:
    async def check() -> None:
        stream = Stream(seconds=60)
        stream.go.set()
        assert [event async for event in Deadline(70).enforce(stream.events())] == [1, 2, 3]
        assert stream.closed

    run(check())


def test_a_late_event_ends_and_closes_the_stream() -> None:
    async def check() -> None:
        stream = Stream(seconds=80)
        with pytest.raises(DeadlineExceeded, match="within 70 s"):
            await anext(Deadline(70).enforce(stream.events()))
        assert stream.closed

    run(check())


def test_time_that_the_consumer_takes_is_never_cut_off_in_the_consumer() -> None:
    async def check() -> None:
        seen = []

        async def consume() -> None:
            async for event in Deadline(70).enforce(Stream().events()):
                await pass_time(100)
                seen.append(event)

        with pytest.raises(DeadlineExceeded):
            await consume()
        assert seen[0] == 1

    run(check())


def test_an_extension_counts_from_now_and_holds_for_the_current_wait() -> None:
    async def check() -> None:
        deadline = Deadline(70)

        async def events() -> AsyncGenerator[int, None]:
            await pass_time(50)
            deadline.extend(70)
            await pass_time(50)
            yield 1
            deadline.extend(20)
            await pass_time(30)
            yield 2

        stream = deadline.enforce(events())
        assert await anext(stream) == 1
        with pytest.raises(DeadlineExceeded, match="within 120 s"):
            await anext(stream)

    run(check())
