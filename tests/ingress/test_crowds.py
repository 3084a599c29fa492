"""Crowds of clients at event streams, over HTTP: they leave nothing behind in this process.

The sizes of buffers are small, so that whoever does not read holds up its own stream.
"""

import asyncio
import re
from contextlib import AsyncExitStack

from tests.support.raw_streams import raw_stream
from tests.support.sleeping_service import sleeping_service

KIB = 2**10
LEAVE = (b"event: progress", b"event: preview", b'"stage":"refiner"')
WRITE_BUFFER = 64 * KIB  # of uvicorn, for each connection
SYSTEM_BUFFER = 8 * KIB  # of each end, and Linux takes twice that
NEWEST = 32 * KIB  # of events, one of each type for each image


async def test_two_hundred_clients_that_leave_in_the_middle_leave_nothing_behind() -> None:
    async with sleeping_service(0.04) as service:

        async def leave(number: int) -> None:
            async with service.stream(number % 2, steps=30, seed=number) as stream:
                await stream.until(LEAVE[number % len(LEAVE)])

        rest, before = await service.at_rest(), await service.engine()
        async with asyncio.TaskGroup() as clients:
            for number in range(200):
                clients.create_task(leave(number))
        await service.nothing_is_left_since(rest)
        assert (await service.engine()).cancelled == before.cancelled + 200


async def test_two_hundred_slow_readers_hold_up_nobody_and_leave_nothing_behind() -> None:
    """Half read a little and, when all is done, what there is for them; the others leave."""
    async with sleeping_service(0.15, send_buffer=SYSTEM_BUFFER) as service, AsyncExitStack() as at:
        rest = await service.at_rest()
        job = await service.submit(imageCount=4, steps=40, width=384, height=384)
        quick, *slow = [
            await at.enter_async_context(
                raw_stream(service.ports[0], "GET", f"{job}/events", read_buffer=SYSTEM_BUFFER)
            )
            for _ in range(201)
        ]
        for stream in slow:
            await stream.until(b"event: ")
        whole = await quick.rest()
        late = await asyncio.gather(*(stream.rest() for stream in slow[::2]))
        await at.aclose()
        for found in (whole, *late):
            names = re.findall(rb"event: (\w+)", found)
            assert (names.count(b"image"), names[-1]) == (4, b"done")
        assert max(map(len, late)) <= WRITE_BUFFER + 4 * SYSTEM_BUFFER + NEWEST
        await service.nothing_is_left_since(rest)


async def test_fifty_streams_at_once_joined_through_both_processes_leave_nothing_behind() -> None:
    async with sleeping_service(0.2) as service:
        rest = await service.at_rest()
        job = await service.submit(imageCount=4, steps=30)

        async def join(number: int) -> bytes:
            async with raw_stream(service.ports[number % 2], "GET", f"{job}/events") as stream:
                return await stream.rest()

        for found in await asyncio.gather(*map(join, range(50))):
            names = re.findall(rb"event: (\w+)", found)
            assert (names.count(b"image"), names[-1]) == (4, b"done")
            assert b"preview" in names
        await service.nothing_is_left_since(rest)
