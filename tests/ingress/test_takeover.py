"""Jobs whose process is gone, or was only slow: another one takes them over."""

import asyncio

import httpx
import pytest

from serve_app.core.errors import OutOfMemory
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.ledger import LEASE
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor, WaitingConductor
from tests.support.job_requests import BODY, KEY, post
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async


class CutOffConductor(WaitingConductor):
    """Finds at its image's next step that another process has it."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        await super().generate(task)
        raise TakenOver("another process works at this image's job")


class SlowConductor(WaitingConductor):
    """Finds that its lease has expired, and asks whether the job is still its own."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        image = await super().generate(task)
        await task.confirm()
        return image


async def lose(
    client: Client, ledger: WatchedLedger, maker: WaitingConductor
) -> asyncio.Task[httpx.Response]:
    """Let a process begin a job, and miss its heartbeats."""
    request = asyncio.create_task(post(client(maker), **KEY))
    await maker.begun.wait()
    await ledger.hear_newest()
    ledger.now += LEASE + 1
    return request


async def test_a_job_of_a_dead_process_is_run_again_with_its_id_and_its_seed(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger
) -> None:
    waiting = WaitingConductor()
    lost = await lose(client, ledger, waiting)
    meta = (await post(client(), **KEY)).json()["meta"]
    assert meta["seeds"] == [waiting.tasks[0].spec.seed]
    assert meta["jobId"] == waiting.job_id
    lost.cancel()
    waiting.go.set()


async def test_a_job_that_was_taken_over_is_cancelled_by_its_id(
    client: Client, ledger: WatchedLedger
) -> None:
    lost, waiting = WaitingConductor(), WaitingConductor()
    request = await lose(client, ledger, lost)
    process = client(waiting)
    again = asyncio.ensure_future(post(process, **KEY))
    await waiting.begun.wait()
    assert waiting.job_id == lost.job_id
    assert (await process.delete(f"/jobs/{lost.job_id}")).json()["state"] == "cancelled"
    assert (await again).status_code == 409
    lost.go.set()
    await request


async def test_who_takes_a_job_over_looks_for_what_replicas_have_kept_and_nobody_else_does(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger
) -> None:
    lost = WaitingConductor()
    request = await lose(client, ledger, lost)
    await post(client(), **KEY)
    await post(client())
    taken_over, new = conductor.calls[0], conductor.calls[-1]
    assert [task.is_retaken for task in (lost.tasks[0], taken_over, new)] == [False, True, False]
    assert taken_over.id == lost.tasks[0].id
    lost.go.set()
    await request


@pytest.mark.parametrize("kind", [CutOffConductor, SlowConductor])
async def test_a_slow_process_that_lost_its_job_gives_its_caller_the_images_of_the_other(
    client: Client, ledger: WatchedLedger, kind: type[WaitingConductor]
) -> None:
    slow, taker = kind(), WaitingConductor()
    first = await lose(client, ledger, slow)
    second = asyncio.ensure_future(post(client(taker), **KEY))
    await taker.begun.wait()
    slow.go.set()
    await until_async(lambda: ledger.joined == 1)
    taker.go.set()
    responses = await asyncio.gather(first, second)
    assert [response.status_code for response in responses] == [201, 201]
    assert responses[0].json()["images"] == responses[1].json()["images"]
    assert len(slow.tasks) == len(taker.tasks)


async def test_a_slow_process_that_still_has_its_job_goes_on_with_it(
    client: Client, ledger: WatchedLedger
) -> None:
    slow = SlowConductor()
    request = await lose(client, ledger, slow)
    slow.go.set()
    assert (await request).status_code == 201


async def test_a_process_that_takes_its_own_job_over_does_not_run_it_twice(
    client: Client, ledger: WatchedLedger
) -> None:
    slow = WaitingConductor()
    process = client(slow)
    first = asyncio.ensure_future(post(process, **KEY))
    await slow.begun.wait()
    images = len(slow.tasks)
    await ledger.hear_newest()
    ledger.now += LEASE + 1  # its heartbeats did not arrive
    await ledger.check_health()
    second = asyncio.ensure_future(post(process, **KEY))
    await until_async(lambda: len(ledger.created) == 2)
    slow.go.set()
    responses = await asyncio.gather(first, second)
    assert [response.status_code for response in responses] == [201, 201]
    assert responses[0].content == responses[1].content
    assert len(slow.tasks) == images


class OnceCutOffConductor(FakeConductor):
    """Is cut off at its first image by a process that was only slow."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        image = await super().generate(task)
        if len(self.calls) == 1:
            raise TakenOver("the image was sent again by another process")
        return image


async def test_an_owner_that_a_slow_process_cuts_off_goes_on_under_the_same_id_and_seed(
    client: Client, ledger: WatchedLedger
) -> None:
    maker = OnceCutOffConductor()
    ledger.may_finish.clear()  # whatever would be written comes late
    process = client(maker)
    request = asyncio.ensure_future(process.post("/generate", json=BODY, headers=KEY))
    await until_async(lambda: len(maker.calls) == 2)
    ledger.may_finish.set()
    answer = (await request).json()
    first, second = maker.calls
    assert (first.id, first.spec) == (second.id, second.spec)
    await client.drain()
    job = (await process.get(f"/jobs/{answer['meta']['jobId']}")).json()
    assert (job["state"], job["result"]) == ("succeeded", answer)


async def test_a_job_that_is_taken_over_is_charged_once_and_given_back_if_the_service_fails(
    client: Client, ledger: WatchedLedger
) -> None:
    limit = RateLimit(rate=0.001, burst=50)  # a picture of the doubles costs about 31
    lost = WaitingConductor()
    request = asyncio.ensure_future(
        client(lost, rate_limit=limit).post("/generate", json=BODY, headers=KEY)
    )
    await lost.begun.wait()
    await ledger.hear_newest()
    ledger.now += LEASE + 1
    failing = FailingConductor(OutOfMemory("no room"), at=0)
    again = await client(failing, rate_limit=limit).post("/generate", json=BODY, headers=KEY)
    assert (again.status_code, again.json()["error"]["code"]) == (503, "OUT_OF_MEMORY")
    await client.jobs[-1].drain()
    third = await client(rate_limit=limit).post("/generate", json=BODY, headers=KEY)
    assert third.status_code == 201
    lost.go.set()
    await request
