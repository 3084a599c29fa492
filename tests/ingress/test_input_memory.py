"""What input images cost before their job is admitted, and the memory that waiting ones take."""

import asyncio
import base64
from collections import Counter
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx
from PIL import Image

from serve_app.core.errors import Overloaded
from serve_app.core.service.info import ModelInfo
from serve_app.ingress.access import digests
from tests.support.api import POLICY, Client
from tests.support.fake_conductor import INFO, NOISE, FakeConductor, WaitingConductor
from tests.support.job_requests import KEY
from tests.support.waiting import until_async

SIDE = 64  # pixels of the images, which take 12 KiB
BYTES = 3 * SIDE * SIDE
SMALL = replace(INFO, models=(ModelInfo("small", SIDE, NOISE),), refiner=None)
LIMIT = 200_000  # bytes, of which bodies have a quarter, and other callers a quarter of the rest
IMAGES = LIMIT * 9 // 16  # bytes of one caller: nine images, and not all of them at once
TIGHT = replace(POLICY, max_body_bytes=LIMIT // 4, max_open_body_bytes=LIMIT)
FULL = Overloaded("the queue is full", retry_after=17)


def body(data: bytes | None = None) -> dict[str, Any]:
    """Return a request with one image: flat, so that its file has less than 300 bytes."""
    file = BytesIO()
    Image.new("RGB", (SIDE, SIDE), "teal").save(file, "PNG")
    image = base64.b64encode(data or file.getvalue()).decode()
    return {"prompt": "a fox", "images": [image], "imageCount": 1}


def waiting_bytes(maker: WaitingConductor) -> int:
    return sum(len(task.inputs.init_image or b"") for task in maker.tasks)


async def send(process: httpx.AsyncClient, number: int) -> list[asyncio.Task[httpx.Response]]:
    """Send so many requests at a time."""
    return [asyncio.create_task(process.post("/refine", json=body())) for _ in range(number)]


async def test_tiny_files_that_unfold_wait_in_bounded_memory(client: Client) -> None:
    maker = WaitingConductor()
    process = client(maker, info=SMALL, policy=TIGHT)
    requests = await send(process, 12)
    await until_async(lambda: len(maker.tasks) + sum(r.done() for r in requests) == 12)
    assert IMAGES / 2 < waiting_bytes(maker) <= IMAGES
    refused = [request.result() for request in requests if request.done()]
    assert {answer.json()["error"]["code"] for answer in refused} == {"OVERLOADED"}
    assert {answer.headers["Retry-After"] for answer in refused} == {"13"}  # the maker's
    maker.go.set()
    answers = Counter(answer.status_code for answer in await asyncio.gather(*requests))
    assert answers == {201: len(maker.tasks), 503: len(refused)}
    requests = await send(process, 3)  # there is room again
    assert {(await request).status_code for request in requests} == {201}


async def test_images_of_a_job_that_goes_on_without_its_client_are_still_counted(
    client: Client,
) -> None:
    maker = WaitingConductor()
    process = client(maker, info=SMALL, policy=TIGHT)
    requests: list[asyncio.Task[httpx.Response]] = []

    async def is_refused() -> bool:
        """Send one more, and return whether it found no room."""
        begun = len(maker.tasks)
        key = {"Idempotency-Key": f"key-{len(requests)}"}
        requests.append(asyncio.create_task(process.post("/refine", json=body(), headers=key)))
        await until_async(lambda: len(maker.tasks) > begun or requests[-1].done())
        return requests[-1].done()

    while not await is_refused():  # one by one, until there is no more room
        pass
    for request in requests:
        request.cancel()
    await asyncio.wait(requests)
    assert await is_refused()
    assert requests[-1].result().status_code == 503
    assert waiting_bytes(maker) <= LIMIT
    maker.go.set()
    await client.drain()
    assert (await process.post("/refine", json=body())).status_code == 201


async def test_images_of_a_refused_job_leave_their_room(client: Client) -> None:
    maker = FakeConductor()
    process = client(maker, info=SMALL, policy=TIGHT)
    maker.refusal = FULL
    for _ in range(12):
        assert (await process.post("/refine", json=body(), headers=KEY)).status_code == 503
    maker.refusal = None
    requests = await send(process, 3)
    assert {(await request).status_code for request in requests} == {201}


async def test_a_full_queue_is_known_before_any_image_is_decoded(client: Client) -> None:
    maker = FakeConductor()
    process = client(maker, info=SMALL)
    maker.refusal = FULL
    broken = body(b"no picture")
    refused = await process.post("/refine", json=broken)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "17")
    edit = {"image": ("a.png", b"no picture", "image/png")}
    refused = await process.post("/v1/images/edits", data={"prompt": "a"}, files=edit)
    assert refused.status_code == 503
    keyed = await process.post("/refine", json=broken, headers=KEY)  # it may be there already
    assert keyed.json()["error"]["code"] == "INVALID_IMAGE"
    maker.refusal = None
    known = await process.post("/refine", json=body(), headers=KEY)
    maker.refusal = FULL
    assert (await process.post("/refine", json=body(), headers=KEY)).json() == known.json()


async def test_one_caller_s_queued_images_refuse_nobody_else_s(client: Client) -> None:
    maker = WaitingConductor()
    policy = replace(TIGHT, keys=digests(("ada-" * 5, "bea-" * 5)))
    process = client(maker, info=SMALL, policy=policy)

    def ask(key: str) -> asyncio.Task[httpx.Response]:
        headers = {"Authorization": f"Bearer {key}"}
        return asyncio.create_task(process.post("/refine", json=body(), headers=headers))

    flood = [ask("ada-" * 5) for _ in range(12)]
    await until_async(lambda: len(maker.tasks) + sum(r.done() for r in flood) == 12)
    begun = len(maker.tasks)
    assert 0 < begun < 12
    other = ask("bea-" * 5)
    await until_async(lambda: len(maker.tasks) > begun or other.done())
    maker.go.set()
    assert (await other).status_code == 201
    await asyncio.gather(*flood)
