"""Streams that nobody reads: what Serve's proxy and the ingress keep of them."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

import pytest

from serve_app.ingress.native.event_stream import MAX_PREVIEWS
from tests.e2e.chaos.processes import Processes, resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import OwnRay
from tests.support.painting_ingress import STEP_S, deploy, noise, withdraw
from tests.support.raw_streams import RawStream, raw_stream

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

APP = "painting"
STREAMS, IMAGES, STEPS, ROUNDS = 20, 8, 150, 3
KIB, MIB = 2**10, 2**20
BASE64 = 4 / 3
GROWTH, REST = 32.0, 5.0  # MiB that a process may keep of all rounds but the first, and seconds


def bound() -> float:
    """Return the most bytes that one stream may have been sent, as docs/operations.md says."""
    image, preview = BASE64 * len(noise("PNG")) + 4 * KIB, BASE64 * len(noise("JPEG")) + 200
    return IMAGES * (image + MAX_PREVIEWS * preview + 200 * (STEPS + STEPS * STEP_S))


async def leave_unread(port: int) -> list[bytes]:
    """Ask for streams, read none until all are done, and then some; return what these had."""
    body = {"prompt": "a fox", "imageCount": IMAGES, "steps": STEPS, "stream": True}
    async with AsyncExitStack() as at:
        streams: list[RawStream] = []
        for _ in range(STREAMS):
            opened = raw_stream(port, "POST", f"/{APP}/generate", body, read_buffer=4 * KIB)
            streams.append(await at.enter_async_context(opened))
        whole = await streams[0].rest()  # made at the same time as the others
        return [whole, *[await stream.rest() for stream in streams[1:4]]]


def test_what_is_kept_of_a_stream_that_nobody_reads_is_bounded(ray_of_its_own: OwnRay) -> None:
    processes = Processes(APP, ray_of_its_own.pid)
    ray_of_its_own.call(deploy, APP, f"/{APP}")
    try:
        ingress, proxy = processes.replicas("PaintingIngress")[0], processes.proxy()
        sizes = [(resident(ingress), resident(proxy))]
        for _ in range(ROUNDS):
            found = asyncio.run(leave_unread(ray_of_its_own.port))
            time.sleep(REST)
            sizes.append((resident(ingress), resident(proxy)))
    finally:
        ray_of_its_own.call(withdraw, APP)
    longest = max(map(len, found))
    previews = max(each.count(b"event: preview") for each in found)
    report(
        f"{STREAMS} streams of {IMAGES} images and {STEPS} previews each are not read, "
        f"{ROUNDS} times",
        f"a stream had {longest / MIB:.1f} MiB, {previews} previews among them; ingress "
        f"{text(size for size, _ in sizes)}, proxy {text(size for _, size in sizes)} MiB",
        f"at most {bound() / MIB:.1f} MiB a stream; since the first round no process has grown by "
        f"more than {GROWTH:.0f} MiB, {REST:.0f} s later",
    )
    assert {each.count(b"event: image") for each in found} == {IMAGES}
    assert longest <= bound()
    for first, last in zip(sizes[1], sizes[-1], strict=True):
        assert last - first <= GROWTH


def text(sizes: Iterable[float]) -> str:
    return ", ".join(f"{size:.0f}" for size in sizes)
