"""Jobs of a process that may be ended at any time: kept in the spool while they go on."""

import asyncio
from typing import Any

import httpx

from serve_app.deployments.ledger import LEASE
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor, WaitingConductor
from tests.support.interrupted_jobs import HalfwayConductor, newest, resume
from tests.support.job_requests import KEY, post
from tests.support.ledgers import CutOffLedger, WatchedLedger
from tests.support.waiting import until_async


async def begin(
    client: Client, spool: JobSpool, maker: WaitingConductor, **options: Any
) -> list[asyncio.Task[httpx.Response]]:
    """Let a process work at a job, and at one that nobody could ask for."""
    http = client(maker, spool=spool, **options)
    calls = [asyncio.create_task(call) for call in (post(http, **KEY), post(http))]
    await until_async(lambda: len(maker.tasks) == 2)
    return calls


async def test_a_saved_job_goes_on_and_its_file_is_gone_when_it_has_ended(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    maker = HalfwayConductor()
    calls = await begin(client, spool, maker)
    await newest(client).save()
    assert len(folder.ids()) == 1
    await newest(client).save()
    maker.go.set()
    answers = await asyncio.gather(*calls)
    await newest(client).drain()
    assert folder.ids() == []
    assert [answer.status_code for answer in answers] == [201, 201]


class LateSpool(JobSpool):
    """Writes only when it may."""

    def __init__(self, folder: SpoolFolder) -> None:
        super().__init__(folder, RERUN_FORMATS, INFO)
        self.may_write = asyncio.Event()

    async def save(self, *args: Any, **options: Any) -> frozenset[str]:
        await self.may_write.wait()
        return await super().save(*args, **options)


async def test_a_file_that_is_written_after_its_job_has_ended_is_deleted_at_once(
    client: Client, folder: SpoolFolder
) -> None:
    maker, spool = HalfwayConductor(), LateSpool(folder)
    calls = await begin(client, spool, maker)
    saving = asyncio.create_task(newest(client).save())
    maker.go.set()
    await asyncio.gather(*calls)
    await newest(client).drain()
    spool.may_write.set()
    await saving
    assert folder.ids() == []


async def test_without_a_spool_nothing_is_saved(client: Client) -> None:
    maker = HalfwayConductor()
    client(maker)
    await newest(client).save()


async def test_another_process_that_runs_already_finishes_what_a_saved_one_left(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger, folder: SpoolFolder
) -> None:
    spool = JobSpool(folder, RERUN_FORMATS, INFO, idle_poll_s=0.05)
    resume(client, spool)
    ended, cut_off = HalfwayConductor(), CutOffLedger(ledger)
    calls = await begin(client, JobSpool(folder, RERUN_FORMATS, INFO), ended, ledger=cut_off)
    await newest(client).save()
    await until_async(lambda: len(ledger.created) > 2)  # the other one has seen the file
    assert conductor.calls == []  # and that its process is alive
    cut_off.is_cut_off = True
    ledger.now += LEASE + 1
    await until_async(lambda: not folder.ids())
    (task,) = conductor.calls
    assert task.id in [other.id for other in ended.tasks]
    assert task.resume is not None
    assert task.resume.sample.index == 5
    for call in calls:
        call.cancel()


async def test_a_process_that_stops_does_not_take_up_what_it_has_just_spooled(
    client: Client, folder: SpoolFolder
) -> None:
    maker = HalfwayConductor()
    calls = await begin(client, JobSpool(folder, RERUN_FORMATS, INFO, idle_poll_s=0.01), maker)
    newest(client).resume()
    await newest(client).stop()
    await asyncio.gather(*calls)
    await asyncio.sleep(0.5)
    assert len(maker.tasks) == 2
    assert len(folder.ids()) == 1
