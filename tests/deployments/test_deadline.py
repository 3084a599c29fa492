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


def deadline(seconds: float, *, is_chosen: bool = False) -> Deadline:
    now = asyncio.get_running_loop().time()
    return Deadline(now + seconds, allowed=seconds, is_chosen=is_chosen)


def run(work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)


def test_events_in_time_pass_and_their_stream_is_closed_at_its_end() -> None:
    async def check() -> None:
        stream = Stream(seconds=60)
        stream.go.set()
        assert [event async for event in deadline(70).enforce(stream.events())] == [1, 2, 3]
        assert stream.closed

    run(check())


def test_a_late_event_ends_and_closes_the_stream() -> None:
    async def check() -> None:
        stream = Stream(seconds=80)
        with pytest.raises(DeadlineExceeded, match="within 70 s"):
            await anext(deadline(70).enforce(stream.events()))
        assert stream.closed

    run(check())


def test_time_that_the_consumer_takes_is_never_cut_off_in_the_consumer() -> None:
    async def check() -> None:
        seen = []

        async def consume() -> None:
            async for event in deadline(70).enforce(Stream().events()):
                await pass_time(100)
                seen.append(event)

        with pytest.raises(DeadlineExceeded):
            await consume()
        assert seen[0] == 1

    run(check())


def test_an_extension_counts_from_now_and_holds_for_the_current_wait() -> None:
    async def check() -> None:
        limit = deadline(70)

        async def events() -> AsyncGenerator[int, None]:
            await pass_time(50)
            limit.extend(70)
            await pass_time(50)
            yield 1
            limit.extend(20)
            await pass_time(30)
            yield 2

        stream = limit.enforce(events())
        assert await anext(stream) == 1
        with pytest.raises(DeadlineExceeded, match="within 120 s"):
            await anext(stream)

    run(check())


def test_a_chosen_deadline_is_never_put_off() -> None:
    async def check() -> None:
        limit = deadline(70, is_chosen=True)
        limit.extend(1000)
        with pytest.raises(DeadlineExceeded, match="not ready within 70 s"):
            await anext(limit.enforce(Stream(seconds=80).events()))

    run(check())


def test_who_still_waits_when_it_is_too_late_to_begin_is_given_up() -> None:
    async def check() -> None:
        limit = deadline(70, is_chosen=True)
        limit.begin_wait(25)  # of which a fifth may be a wrong prediction
        assert await anext(limit.enforce(Stream(seconds=45).events())) == 1
        with pytest.raises(DeadlineExceeded, match="still waits and can't be ready within 70 s"):
            await anext(limit.enforce(Stream(seconds=10).events()))

    run(check())


def test_who_has_its_turn_may_use_the_whole_time() -> None:
    async def check() -> None:
        limit = deadline(70, is_chosen=True)

        async def events() -> AsyncGenerator[int, None]:
            limit.begin_wait(50)
            limit.end_wait()
            await pass_time(65)
            yield 1
            limit.end_wait()

        assert [event async for event in limit.enforce(events())] == [1]

    run(check())


def test_a_deadline_that_nobody_chose_gives_nobody_up_early() -> None:
    async def check() -> None:
        limit = deadline(70)
        limit.begin_wait(1000)
        assert await anext(limit.enforce(Stream(seconds=60).events())) == 1

    run(check())
