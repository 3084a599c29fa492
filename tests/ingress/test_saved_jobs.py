"""Jobs of a process that may be ended at any time: kept in the spool while they go on."""

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.core.errors import OutOfMemory
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.core.service.unfinished import Unfinished
from serve_app.deployments.ledger import LEASE
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.spool.folder import SpoolFolder
from serve_app.spool.spool_file import SpoolFile
from serve_app.spool.spooled_job import SpooledJob
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor, WaitingConductor
from tests.support.interrupted_jobs import HalfwayConductor, interrupt, newest, resume
from tests.support.job_requests import BODY, KEY, post
from tests.support.ledgers import CutOffLedger, WatchedLedger
from tests.support.spooled_jobs import spooled_job
from tests.support.waiting import until_async


class WatchedFolder(SpoolFolder):
    """Counts how often its process looks for files, and may not write before it may."""

    def __init__(self, path: Path, *, may_write: bool = True, **options: Any) -> None:
        super().__init__(path, **options)
        self.looks = 0
        self.may_write = threading.Event()
        if may_write:
            self.may_write.set()

    def ids(self) -> list[str]:
        self.looks += 1
        return super().ids()

    def write(
        self, job: SpooledJob, *, makes_room: bool = True
    ) -> tuple[SpoolFile, tuple[str, ...]]:
        self.may_write.wait()
        return super().write(job, makes_room=makes_room)


class FailingHalfway(HalfwayConductor):
    """Fails when it may go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def generate(self, task: ImageTask) -> GeneratedImage:
        await super().generate(task)
        raise self._error


class StubbornConductor(HalfwayConductor):
    """Is slow to end what was cancelled."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        try:
            return await super().generate(task)
        except asyncio.CancelledError:
            await self.go.wait()
            raise


def frequent(folder: SpoolFolder) -> JobSpool:
    """Return the spool of a process that looks often."""
    return JobSpool(folder, RERUN_FORMATS, INFO, poll_s=0.02, idle_poll_s=0.02)


async def look_thrice(folder: WatchedFolder) -> None:
    """Return when the folder's process has looked for files, and done what it found to do."""
    seen = folder.looks
    await until_async(lambda: folder.looks > seen + 3)


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


async def test_a_file_that_is_written_after_its_job_has_ended_is_deleted_at_once(
    client: Client, folder: SpoolFolder
) -> None:
    maker, slow = HalfwayConductor(), WatchedFolder(folder.path, may_write=False)
    calls = await begin(client, JobSpool(slow, RERUN_FORMATS, INFO), maker)
    saving = asyncio.create_task(newest(client).save())
    maker.go.set()
    await asyncio.gather(*calls)
    await newest(client).drain()
    slow.may_write.set()
    await saving
    assert folder.ids() == []


async def test_without_a_spool_nothing_is_saved(client: Client) -> None:
    maker = HalfwayConductor()
    client(maker)
    await newest(client).save()


async def test_a_job_is_written_again_only_when_it_is_further(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    maker = HalfwayConductor()
    calls = await begin(client, spool, maker)

    async def saved() -> int:
        await newest(client).save()
        (file,) = folder.path.iterdir()
        return file.stat().st_mtime_ns

    first, second = await saved(), await saved()
    maker.steps += 1
    third = await saved()
    assert first == second < third
    maker.go.set()
    await asyncio.gather(*calls)


async def test_a_save_that_comes_after_the_stop_leaves_what_the_stop_has_spooled(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    maker = HalfwayConductor()
    calls = await begin(client, spool, maker)
    await newest(client).save()
    assert await newest(client).stop() == Unfinished(spooled=1, lost=1)
    await asyncio.gather(*calls)
    await newest(client).save()
    assert len(folder.ids()) == 1
    assert (await post(client(spool=JobSpool(folder, RERUN_FORMATS, INFO)), **KEY)).is_success
    assert [task.resume is not None for task in conductor.calls] == [True]


async def test_nothing_is_saved_while_the_process_stops(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    maker = StubbornConductor()
    calls = await begin(client, spool, maker)
    stopping = asyncio.create_task(newest(client).stop())
    await until_async(lambda: maker.cancelled == 2)
    (file,) = folder.path.iterdir()
    written = file.stat().st_mtime_ns
    maker.steps += 1
    await newest(client).save()
    assert file.stat().st_mtime_ns == written
    maker.go.set()
    assert await stopping == Unfinished(spooled=1, lost=1)
    await asyncio.gather(*calls)


async def test_a_save_under_way_at_the_stop_leaves_files_that_whoever_comes_next_may_take(
    client: Client, conductor: FakeConductor, folder: SpoolFolder
) -> None:
    maker, slow = HalfwayConductor(), WatchedFolder(folder.path, may_write=False)
    calls = await begin(client, JobSpool(slow, RERUN_FORMATS, INFO), maker)
    saving = asyncio.create_task(newest(client).save())
    stopping = asyncio.create_task(newest(client).stop())
    await asyncio.sleep(0)
    slow.may_write.set()
    assert await stopping == Unfinished(spooled=1, lost=1)
    await asyncio.gather(saving, *calls)
    resume(client, frequent(folder))
    await until_async(lambda: not folder.ids())
    assert [task.resume is not None for task in conductor.calls] == [True]


async def test_a_saved_job_that_another_process_has_by_now_keeps_its_file(
    client: Client, ledger: WatchedLedger, folder: SpoolFolder, spool: JobSpool
) -> None:
    slow, owner = FailingHalfway(TakenOver("another process works at it")), HalfwayConductor()
    cut_off = CutOffLedger(ledger)
    calls = await begin(client, spool, slow, ledger=cut_off)
    await newest(client).save()
    await until_async(lambda: len(ledger.created) == len(calls))  # one without a key lingers
    await ledger.hear_newest()
    cut_off.is_cut_off = True  # or a heartbeat may come before the key does
    ledger.now += LEASE + 1
    again = asyncio.create_task(post(client(owner), **KEY))
    await owner.begun.wait()
    cut_off.is_cut_off = False
    slow.go.set()
    await until_async(lambda: ledger.joined > 0)  # the slow one waits for the owner's images
    await client.jobs[0].save()
    assert folder.ids() == [owner.job_id]
    taken = folder.take(owner.job_id)
    assert taken is not None  # for whoever comes when the owner dies, too
    taken[0].release()
    owner.go.set()
    await asyncio.gather(again, *calls)


async def test_no_process_looks_into_the_file_of_a_job_that_another_one_works_at(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger, folder: SpoolFolder
) -> None:
    maker, watched = HalfwayConductor(), WatchedFolder(folder.path)
    calls = await begin(client, JobSpool(folder, RERUN_FORMATS, INFO), maker)
    await newest(client).save()
    await newest(client).save()
    (id,) = folder.ids()
    claims = len(calls)
    await until_async(lambda: len(ledger.created) == claims)  # it hears later of those without key
    resume(client, frequent(watched))
    await look_thrice(watched)
    assert folder.take(id) is None
    assert len(ledger.created) == claims
    client.jobs[0].cancel_here(id)
    await until_async(lambda: not folder.ids())
    await look_thrice(watched)
    assert conductor.calls == []
    maker.go.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_file_that_outlived_its_job_is_deleted_and_the_job_neither_made_nor_refunded_again(
    client: Client,
    conductor: FakeConductor,
    folder: SpoolFolder,
    spool: JobSpool,
    tmp_path: Path,
    how: str,
) -> None:
    limit = RateLimit(rate=1e-9, burst=64)  # of two images
    maker = FailingHalfway(OutOfMemory("no room"))
    http = client(maker, spool=spool, rate_limit=limit)
    call = asyncio.create_task(post(http, **KEY))
    await maker.begun.wait()
    await newest(client).save()
    file = folder.path / f"{maker.job_id}.safetensors"
    shutil.copy2(file, tmp_path / file.name)
    if how == "cancelled":
        await http.delete(f"/jobs/{maker.job_id}")
    else:
        maker.go.set()
    assert (await call).status_code in (409, 503)
    await newest(client).drain()
    assert folder.ids() == []
    shutil.move(tmp_path / file.name, file)  # as if its process had died before it was deleted

    http = resume(client, frequent(folder), rate_limit=limit)
    await until_async(lambda: not folder.ids())
    assert conductor.calls == []
    answer = await http.post("/generate", json=BODY | {"prompt": "another"}, headers=KEY)
    assert answer.status_code == 201
    left = 1 if how == "failed" else 0
    answers = [(await post(http)).status_code for _ in range(left + 1)]
    assert answers == [201] * left + [429]


async def test_a_copy_of_a_job_that_goes_on_does_not_cost_a_stopped_one_its_only_file(
    client: Client, folder: SpoolFolder, spool: JobSpool
) -> None:
    stopped = HalfwayConductor()
    await interrupt(client, spool, stopped)
    (file,) = folder.path.iterdir()
    small = SpoolFolder(folder.path, max_bytes=int(3.5 * file.stat().st_size))
    maker = HalfwayConductor()
    http = client(maker, spool=JobSpool(small, RERUN_FORMATS, INFO))
    calls = [asyncio.create_task(post(http, **{"Idempotency-Key": f"k{n}"})) for n in range(5)]
    await until_async(lambda: len(maker.tasks) == 5)
    await newest(client).save()
    saved = folder.ids()
    assert stopped.job_id in saved
    assert len(saved) == 3
    maker.steps += 1
    await newest(client).save()
    assert sorted(folder.ids()) == sorted(saved)
    maker.go.set()
    await asyncio.gather(*calls)


async def test_however_many_files_are_locked_the_next_one_is_taken_up(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    files = [folder.write(spooled_job(f"{number:032x}"))[0] for number in range(65)]
    await interrupt(client, spool, HalfwayConductor())
    resume(client, frequent(folder))
    await until_async(lambda: conductor.calls)
    await until_async(lambda: len(folder.ids()) == len(files))
    for file in files:
        file.delete()


async def test_a_process_that_retires_takes_up_nothing_until_it_is_polled_again(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool
) -> None:
    await interrupt(client, spool, HalfwayConductor())
    watched, is_retiring = WatchedFolder(folder.path), threading.Event()
    is_retiring.set()
    client(spool=frequent(watched))
    newest(client).resume(is_retiring.is_set)
    await look_thrice(watched)
    assert conductor.calls == []
    is_retiring.clear()
    await until_async(lambda: not folder.ids())
    assert len(conductor.calls) == 1


async def test_another_process_that_runs_already_finishes_what_a_saved_one_left(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger, folder: SpoolFolder
) -> None:
    watched = WatchedFolder(folder.path)
    resume(client, frequent(watched))
    ended, cut_off = HalfwayConductor(), CutOffLedger(ledger)
    spool = JobSpool(folder, RERUN_FORMATS, INFO)
    calls = await begin(client, spool, ended, ledger=cut_off)
    await newest(client).save()
    await look_thrice(watched)
    assert conductor.calls == []  # its process is alive
    cut_off.is_cut_off = True
    spool.release(*folder.ids())  # as the system does for a process that ends
    await look_thrice(watched)
    assert conductor.calls == []  # it may be one that only gave up its file
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
    stopped, other = WatchedFolder(folder.path), WatchedFolder(folder.path)
    maker, loading = HalfwayConductor(), FakeConductor()
    calls = await begin(client, frequent(stopped), maker)
    newest(client).resume()
    await look_thrice(stopped)
    await newest(client).stop()
    await asyncio.gather(*calls)
    looks = stopped.looks
    loading.current_health = Health(HealthStatus.LOADING, "no replica", {}, 0.0)
    resume(client, frequent(other), loading)
    await look_thrice(other)  # as often as the stopped one would
    assert stopped.looks == looks
    assert len(maker.tasks) == 2
    assert len(folder.ids()) == 1
