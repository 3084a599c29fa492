"""Jobs that a stop leaves unfinished: kept on disk, finished by the next process, or counted."""

import asyncio
import base64
from typing import Any

from serve_app.core.errors import Draining, ImageTooLarge, Loading, Overloaded
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor, WaitingConductor
from tests.support.interrupted_jobs import HalfwayConductor, interrupt, newest, resume
from tests.support.job_requests import KEY, post
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

OTHER_KEY = {"Idempotency-Key": "key-2"}
IMAGES = "/v1/images/generations"


async def test_the_next_process_finishes_a_spooled_job_from_where_it_was(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    unfinished, (refused,) = await interrupt(client, spool, waiting)
    assert unfinished == Unfinished(spooled=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "DRAINING")
    assert folder.ids() == [waiting.job_id]

    http = resume(client, spool)
    await until_async(lambda: not folder.ids())
    (task,) = conductor.calls
    assert task.resume is not None
    assert task.resume.sample.index == 5
    assert (task.id, task.spec) == (waiting.tasks[0].id, waiting.tasks[0].spec)
    answer = await post(http, **KEY)
    assert answer.json()["meta"]["jobId"] == waiting.job_id
    assert len(conductor.calls) == 1


async def test_an_image_that_has_taken_no_step_is_spooled_and_begins_as_any_other(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor(steps=0)
    await interrupt(client, spool, waiting)
    assert (await post(client(spool=spool), **KEY)).json()["meta"]["jobId"] == waiting.job_id
    assert conductor.calls[0].resume is None


async def test_whoever_asks_before_the_next_process_has_begun_gets_the_spooled_job(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    answer = await post(client(spool=spool), **KEY)
    assert answer.json()["meta"]["jobId"] == waiting.job_id
    await client.drain()
    (task,) = conductor.calls
    assert task.resume is not None
    assert folder.ids() == []


async def test_of_several_processes_one_finishes_each_spooled_job(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    unfinished, _ = await interrupt(client, spool, HalfwayConductor(), count=4)
    assert unfinished == Unfinished(spooled=4)
    for _ in range(3):
        resume(client, JobSpool(folder, RERUN_FORMATS, INFO))
    await until_async(lambda: not folder.ids())
    assert len({task.id for task in conductor.calls}) == len(conductor.calls) == 4


async def test_a_job_that_nobody_can_ask_for_is_lost_and_counted(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = WaitingConductor()
    call = asyncio.ensure_future(post(client(waiting, spool=spool)))
    await waiting.begun.wait()
    assert await newest(client).stop() == Unfinished(lost=1)
    assert (await call).json()["error"]["code"] == "DRAINING"
    assert folder.ids() == []


async def test_without_a_spool_everything_is_lost_but_its_id_and_its_seed(client: Client) -> None:
    waiting = WaitingConductor()
    unfinished, _ = await interrupt(client, None, waiting)
    assert unfinished == Unfinished(lost=1)
    meta = (await post(client(), **KEY)).json()["meta"]
    assert meta["jobId"] == waiting.job_id
    assert meta["seeds"] == [waiting.tasks[0].spec.seed]


async def test_a_job_that_ends_before_its_process_is_neither_lost_nor_spooled(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    assert (await post(client(spool=spool), **KEY)).status_code == 201
    assert await newest(client).stop() == Unfinished()
    assert folder.ids() == []


async def test_a_call_during_the_stop_costs_a_key_neither_its_id_nor_its_seed(
    client: Client, conductor: FakeConductor, spool: JobSpool, folder: SpoolFolder
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    draining = FakeConductor()
    draining.refusal = Draining("the service is shutting down")
    assert (await post(client(draining, spool=spool), **KEY)).status_code == 503
    await client.drain()
    assert folder.ids() == [waiting.job_id]
    meta = (await post(client(spool=spool), **KEY)).json()["meta"]
    assert meta["jobId"] == waiting.job_id
    assert conductor.calls[0].resume is not None


async def test_a_spooled_job_is_neither_charged_again_nor_refused(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    limit = RateLimit(rate=1e-9, burst=32)  # of one image of 1024 x 1024 and 30 steps
    waiting = HalfwayConductor()
    call = asyncio.ensure_future(post(client(waiting, spool=spool, rate_limit=limit), **KEY))
    await waiting.begun.wait()
    await newest(client).stop()
    await call
    crowded = FakeConductor()
    crowded.refusal = Overloaded("the queue is full", retry_after=0)
    resume(client, spool, crowded, rate_limit=limit)
    await until_async(lambda: crowded.refused > 2)
    assert folder.ids() == [waiting.job_id]
    crowded.refusal = None
    await until_async(lambda: not folder.ids())
    assert len(crowded.calls) == 1


async def test_a_spooled_job_waits_until_the_stages_are_ready(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    await interrupt(client, spool, HalfwayConductor())
    conductor.current_health = Health(HealthStatus.LOADING, "no replica", {}, 0.0)
    resume(client, spool)
    await asyncio.sleep(0.1)
    assert conductor.admitted == []
    conductor.current_health = Health(HealthStatus.READY, "", {"base": 1}, 0.0)
    await until_async(lambda: not folder.ids())
    assert len(conductor.calls) == 1


async def test_a_spooled_job_that_meets_a_stage_without_replicas_is_kept(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    failing = FailingConductor(Loading("the base stage is not ready"), at=0)
    assert (await post(client(failing, spool=spool), **KEY)).status_code == 503
    await client.drain()
    assert folder.ids() == [waiting.job_id]


async def test_a_spooled_job_that_another_process_has_by_now_is_kept_until_that_one_is_done(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    failing = FailingConductor(TakenOver("another process works at this job"), at=0)
    resume(client, spool, failing)
    await until_async(lambda: failing.begun > 0)
    await newest(client).drain()
    assert folder.ids() == [waiting.job_id]


async def test_a_spooled_job_that_fails_is_known_by_its_failure(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    http = resume(client, spool, FailingConductor(ImageTooLarge("does not fit"), at=0))
    await until_async(lambda: not folder.ids())
    job = (await http.get(f"/jobs/{waiting.job_id}")).json()
    assert (job["state"], job["error"]["code"]) == ("failed", ImageTooLarge.code)


async def test_a_file_whose_job_the_ledger_has_already_is_deleted(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    assert (await post(client(), **KEY)).status_code == 201  # by a process without the spool
    await client.drain()
    resume(client, spool)
    await until_async(lambda: not folder.ids())
    assert len(conductor.calls) == 1


async def test_a_job_that_is_interrupted_twice_is_kept_twice(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    first, second = HalfwayConductor(), HalfwayConductor()
    await interrupt(client, spool, first)
    resume(client, spool, second)
    await second.begun.wait()
    assert await newest(client).stop() == Unfinished(spooled=1)
    assert folder.ids() == [first.job_id]
    assert (await post(client(spool=spool), **KEY)).json()["meta"]["jobId"] == first.job_id


class UnbegunConductor(WaitingConductor):
    """Has got its images, and gone nowhere with them."""

    def snapshot(self, id: str) -> ImageSnapshot | None:
        return None


async def test_a_job_that_is_interrupted_before_it_goes_on_keeps_how_far_it_was(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    await interrupt(client, spool, HalfwayConductor())
    unbegun = UnbegunConductor()
    resume(client, spool, unbegun)
    await unbegun.begun.wait()
    assert await newest(client).stop() == Unfinished(spooled=1)
    await post(client(spool=spool), **KEY)
    (task,) = conductor.calls
    assert task.resume is not None
    assert task.resume.sample.index == 5


class LastMomentSpool(JobSpool):
    """Is so slow that what it keeps ends meanwhile."""

    def __init__(self, folder: SpoolFolder, maker: WaitingConductor) -> None:
        super().__init__(folder, RERUN_FORMATS, INFO)
        self._maker = maker

    async def keep(self, *args: Any, **options: Any) -> frozenset[str]:
        kept = await super().keep(*args, **options)
        self._maker.go.set()
        await until_async(lambda: self._maker.calls)
        for _ in range(9):
            await asyncio.sleep(0)
        return kept


async def test_a_job_that_ends_while_it_is_spooled_leaves_no_file(
    client: Client, folder: SpoolFolder
) -> None:
    waiting = HalfwayConductor()
    unfinished, (answer,) = await interrupt(client, LastMomentSpool(folder, waiting), waiting)
    assert (answer.status_code, unfinished) == (201, Unfinished())
    assert folder.ids() == []


async def test_the_request_in_a_picture_s_metadata_is_the_same_after_a_stop(
    client: Client, conductor: FakeConductor, spool: JobSpool, ledger: WatchedLedger
) -> None:
    body = {"prompt": "a fox", "seed": 3, "output_format": "jpeg", "output_compression": 40}
    whole = await client().post(IMAGES, json=body, headers=OTHER_KEY)
    assert whole.status_code == 200
    waiting = HalfwayConductor()
    call = asyncio.ensure_future(client(waiting, spool=spool).post(IMAGES, json=body, headers=KEY))
    await waiting.begun.wait()
    await newest(client).stop()
    assert (await call).status_code == 503
    http = client(spool=spool)
    assert (await http.post(IMAGES, json=body, headers=KEY)).status_code == 200
    await client.drain()
    ids = [task.id.rpartition("-")[0] for task in conductor.calls]
    files = [(await http.get(f"/jobs/{id}")).json()["result"]["images"] for id in ids]
    assert len(ids) == 2
    assert files[0] == files[1]
    assert b"output_compression" in base64.b64decode(files[0][0])
