"""Crowds of clients at event streams, through Serve's proxy and two ingresses."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve_app.core.diffusion.spec import Stage
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.processes import resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.support.raw_streams import raw_stream
from tests.support.replica_census import ReplicaCensus, replica_census
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

CLIENTS, RATE = 200, 20.0  # and how many come in a second
LEAVE = (b"event: progress", b"event: preview", b'"stage":"refiner"')


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service with two ingresses whose steps take a third of SDXL's time."""
    folder = tmp_path_factory.mktemp("crowds")
    with own_service(ray_of_its_own, folder, seconds_scale=0.3, ingress=2) as service:
        yield service


def port_of(service: ChaosService) -> int:
    return int(service.address.rpartition(":")[2])


def census(service: ChaosService) -> dict[str, ReplicaCensus]:
    counted: dict[str, ReplicaCensus] = service.call(replica_census, service.app, "Ingress")
    return counted


def is_within(service: ChaosService, before: dict[str, ReplicaCensus]) -> bool:
    now = census(service)
    return all(now[name].is_within(before[name], spare=4) for name in now)


def cancelled(service: ChaosService) -> int:
    return sum(stats.engine.cancelled for stage in Stage for stats in service.stats(stage))


async def leave(port: int, number: int) -> None:
    """Watch an image until it is in a certain state, and leave."""
    await asyncio.sleep(number / RATE)
    body = {**image_body(number, steps=30), "handoff": 0.3, "stream": True}
    async with raw_stream(port, "POST", "/generate", body) as stream:
        await stream.until(LEAVE[number % len(LEAVE)])


async def leave_all(port: int, count: int) -> None:
    await asyncio.gather(*(leave(port, number) for number in range(count)))


def test_two_hundred_clients_that_leave_in_the_middle_leave_nothing_behind(
    service: ChaosService,
) -> None:
    asyncio.run(leave_all(port_of(service), 40))
    service.wait_idle()
    before, counted = census(service), cancelled(service)
    asyncio.run(leave_all(port_of(service), CLIENTS))
    began = time.monotonic()
    service.wait_idle()
    seconds = time.monotonic() - began
    until(lambda: is_within(service, before))
    count = cancelled(service) - counted
    report(
        f"{CLIENTS} streams are left in the middle of their images, {RATE:.0f} a second",
        f"{count} images cancelled in an engine, the last {seconds:.2f} s after its client left; "
        f"before {list(before.values())}, after {list(census(service).values())}",
        "no task is left at an ingress, and no image at a replica",
    )
    assert count >= 0.95 * CLIENTS  # some were on their way from base to refiner


async def read_slowly(port: int) -> tuple[bytes, list[bytes]]:
    """Join a job by one quick reader and many slow ones; return what it and half of them got."""
    body = {**image_body(1, steps=100, imageCount=4), "handoff": 0.5}
    async with AsyncExitStack() as at:
        asking = raw_stream(port, "POST", "/generate", body, {"Prefer": "respond-async"})
        async with asking as accepted:
            head = await accepted.until(b"\r\n\r\n")
        (job,) = re.findall(rb"\nlocation: (\S+)", head)
        path = f"{job.decode()}/events"
        quick, *slow = [
            await at.enter_async_context(raw_stream(port, "GET", path, read_buffer=2**13))
            for _ in range(CLIENTS + 1)
        ]
        for stream in slow:
            await stream.until(b"event: ")
        whole = await quick.rest()
        return whole, await asyncio.gather(*(stream.rest() for stream in slow[::2]))


def test_two_hundred_slow_readers_hold_up_nobody_and_leave_nothing_behind(
    service: ChaosService,
) -> None:
    asyncio.run(read_slowly(port_of(service)))
    before = census(service)
    sizes = [resident(process) for process in (*ingresses(service), service.processes.proxy())]
    whole, late = asyncio.run(read_slowly(port_of(service)))
    until(lambda: is_within(service, before))
    later = [resident(process) for process in (*ingresses(service), service.processes.proxy())]
    grown = [f"{size:.0f} {after - size:+.0f}" for size, after in zip(sizes, later, strict=True)]
    report(
        f"{CLIENTS} readers of one job read nothing until its end, when half of them leave",
        f"a quick reader got {len(whole) // 1024} KiB, the slow ones "
        f"{min(map(len, late)) // 1024} to {max(map(len, late)) // 1024}; ingresses and proxy "
        f"{', '.join(grown)} MiB; before {list(before.values())}, after "
        f"{list(census(service).values())}",
        "all that stay get all images, and no task is left at an ingress",
    )
    for found in (whole, *late):
        events = re.findall(rb"event: (\w+)", found)
        assert (events.count(b"image"), events[-1]) == (4, b"done")


def ingresses(service: ChaosService) -> list[Any]:
    return service.processes.replicas("Ingress")
