"""What a job of the spool must pass before it goes on, and whose its file is meanwhile."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from serve_app.core.service.info import ExtensionInfo, ServiceInfo
from serve_app.core.service.moderation import WordList
from serve_app.core.service.unfinished import Unfinished
from serve_app.deployments.ledger import LEASE
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor, WaitingConductor
from tests.support.interrupted_jobs import HalfwayConductor, interrupt, newest, resume
from tests.support.job_requests import KEY, post
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

CAREFUL: dict[str, dict[str, Any]] = {
    "SAFETY_BLOCK": {"prompt_filter": WordList(["fox"])},
    "TERMS_NOT_ACCEPTED": {"info": replace(INFO, terms_required=True)},
}


@dataclass(frozen=True)
class Takeover:
    """A spooled job, the process that took it up first, and the one that has it by now."""

    slow: WaitingConductor
    owner: WaitingConductor
    request: asyncio.Task[httpx.Response]


@pytest.mark.parametrize("code", CAREFUL)
async def test_a_spooled_job_that_a_newcomer_would_be_refused_for_ends_with_that_refusal(
    client: Client, conductor: FakeConductor, folder: SpoolFolder, spool: JobSpool, code: str
) -> None:
    waiting = HalfwayConductor()
    await interrupt(client, spool, waiting)
    http = resume(client, spool, **CAREFUL[code])
    await until_async(lambda: not folder.ids())
    assert conductor.admitted == []
    job = (await http.get(f"/jobs/{waiting.job_id}")).json()
    refusal = (await post(http, **KEY)).json()["error"]
    assert (job["state"], job["error"]["code"]) == ("failed", code)
    assert refusal["code"] == code


async def take_over(client: Client, ledger: WatchedLedger, spool: JobSpool) -> Takeover:
    """Let a process without the spool take a spooled job over from one that is only slow."""
    await interrupt(client, spool, HalfwayConductor())
    slow, owner = WaitingConductor(), WaitingConductor()
    resume(client, spool, slow)
    await slow.begun.wait()
    await ledger.hear_newest()
    ledger.now += LEASE + 1
    request = asyncio.ensure_future(post(client(owner), **KEY))
    await owner.begun.wait()
    slow.go.set()
    await client.jobs[-2].drain()
    return Takeover(slow, owner, request)


async def test_a_slow_process_leaves_the_file_until_the_one_that_has_its_job_by_now_is_done(
    client: Client, ledger: WatchedLedger, folder: SpoolFolder, spool: JobSpool
) -> None:
    takeover = await take_over(client, ledger, spool)
    assert folder.ids() == [takeover.slow.job_id]
    takeover.owner.go.set()
    assert (await takeover.request).status_code == 201
    await until_async(lambda: not folder.ids())
    assert len(takeover.slow.tasks) == 1


async def test_the_file_serves_whoever_takes_the_job_up_when_its_new_owner_has_given_it_up(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    folder: SpoolFolder,
    spool: JobSpool,
) -> None:
    takeover = await take_over(client, ledger, spool)
    assert await newest(client).stop() == Unfinished(lost=1)
    assert (await takeover.request).status_code == 503
    assert (await post(client(spool=spool), **KEY)).status_code == 201
    await until_async(lambda: not folder.ids())
    (task,) = conductor.calls + takeover.slow.tasks[1:]  # which looks for jobs to take up, too
    assert task.resume is not None


def with_weights(digest: str) -> ServiceInfo:
    """Return a service whose default model has files of this digest, under the same name."""
    return replace(INFO, models=(replace(INFO.models[0], weights=digest),))


CHANGES = {
    "the model": with_weights("b"),
    "the refiner": replace(with_weights("a"), refiner_weights="c"),
    "the precision": replace(with_weights("a"), precision="bf16"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_spooled_job_of_other_model_files_begins_anew_with_its_id_and_its_seed(
    client: Client,
    conductor: FakeConductor,
    folder: SpoolFolder,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    waiting, info = HalfwayConductor(), with_weights("a")
    await interrupt(client, JobSpool(folder, RERUN_FORMATS, info), waiting)
    changed = JobSpool(folder, RERUN_FORMATS, CHANGES[name])
    resume(client, changed, info=CHANGES[name])
    await until_async(lambda: not folder.ids())
    (task,) = conductor.calls
    assert task.resume is None
    assert (task.id, task.spec) == (waiting.tasks[0].id, waiting.tasks[0].spec)
    assert f"job {waiting.job_id} of the spool begins anew" in caplog.text


async def test_a_spooled_job_goes_on_where_files_have_changed_that_it_does_not_use(
    client: Client, conductor: FakeConductor, folder: SpoolFolder
) -> None:
    info = with_weights("a")
    await interrupt(client, JobSpool(folder, RERUN_FORMATS, info), HalfwayConductor())
    models = (*info.models, replace(info.models[0], name="another", weights="x"))
    lora = ExtensionInfo("lora", "ink", (), weights="y")
    more = replace(info, models=models, extensions=(lora,))
    resume(client, JobSpool(folder, RERUN_FORMATS, more), info=more)
    await until_async(lambda: not folder.ids())
    (task,) = conductor.calls
    assert task.resume is not None
