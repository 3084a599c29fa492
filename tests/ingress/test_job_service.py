"""Jobs over HTTP: remembered, cancelled, and finished while the ledger is slow or away."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.errors import AuraError, NumericFault, OutOfMemory
from serve_app.core.service.jobs import Job, JobState
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.conductor import Conductor
from serve_app.ingress.generation import GenerationRequest, plan_job
from serve_app.ingress.job_service import JobService
from serve_app.ingress.native.rerun import GENERATE
from serve_app.ingress.request_context import RequestContext
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor, WaitingConductor
from tests.support.job_requests import ANONYMOUS, BODY, KEY, STRANGER, post
from tests.support.ledgers import AwayLedger, WatchedLedger
from tests.support.stage_doubles import CountingStage, StageEvents


async def test_every_request_is_a_job_that_any_process_knows(client: Client) -> None:
    answer = (await client().post("/generate", json=BODY)).json()
    await client.drain()
    response = await client().get(f"/jobs/{answer['meta']['jobId']}")
    assert response.status_code == 200
    job = response.json()
    assert (job["state"], job["result"], job["error"]) == ("succeeded", answer, None)
    for id in ("none", "%00", "a%20b", "x" * 65, "%F0%9F%A6%8A"):
        assert (await client().get(f"/jobs/{id}")).status_code == 404
        assert (await client().delete(f"/jobs/{id}")).status_code == 404


async def test_another_process_knows_a_job_as_soon_as_its_caller_does(
    client: Client, ledger: WatchedLedger
) -> None:
    waiting, other = WaitingConductor(), client()
    request = asyncio.ensure_future(post(client(waiting)))
    await waiting.begun.wait()  # the ledger has not heard of it
    assert not ledger.created
    begun = await other.get(f"/jobs/{waiting.job_id}")
    assert (begun.status_code, begun.json()["state"]) == (200, "running")
    waiting.go.set()
    answer = (await request).json()  # the ledger has not heard of its end
    assert not ledger.finishing.is_set()
    job = (await other.get(f"/jobs/{waiting.job_id}")).json()
    assert (job["state"], job["result"]) == ("succeeded", answer)


async def test_a_response_does_not_wait_for_the_ledger_but_a_look_at_the_job_does(
    client: Client, ledger: WatchedLedger
) -> None:
    ledger.may_finish.clear()
    process = client()
    answer = (await post(process)).json()
    response = asyncio.ensure_future(process.get(f"/jobs/{answer['meta']['jobId']}"))
    await ledger.finishing.wait()
    assert not response.done()
    ledger.may_finish.set()
    assert (await response).json()["state"] == "succeeded"


@pytest.mark.parametrize("route", ["/generate", "/v1/images/generations"])
async def test_an_image_knows_whether_its_caller_named_a_seed(
    client: Client, conductor: FakeConductor, route: str
) -> None:
    for seed in ({}, {"seed": 7}):
        assert (await client().post(route, json={"prompt": "a fox", **seed})).is_success
    named = [(task.has_drawn_seed, task.spec.seed == 7) for task in conductor.calls]
    assert set(named) >= {(True, False), (False, True)}
    assert (True, True) not in named


async def test_a_job_has_the_time_of_its_request_in_rfc_3339(
    client: Client, ledger: WatchedLedger
) -> None:
    await ledger.create(Job("known", "address:127.0.0.1", "me", 1767225599.9996), None)
    job = (await client().get("/jobs/known")).json()
    assert job["createdAt"] == "2025-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    ("error", "status"), [(OutOfMemory("no room"), 503), (NumericFault("NaN"), 500)]
)
async def test_a_job_that_failed_has_its_error(
    client: Client, error: AuraError, status: int
) -> None:
    failing = FailingConductor(error, at=0)
    process = client(failing)
    assert (await post(process)).status_code == status
    job = (await process.get(f"/jobs/{failing.job_id}")).json()
    assert job["state"] == "failed"
    final = status == 500
    assert job["error"] == {"code": error.code, "message": error.problem, "final": final}


async def test_a_caller_who_leaves_cancels_the_job(client: Client) -> None:
    waiting = WaitingConductor()
    request = asyncio.ensure_future(post(client(waiting)))
    await waiting.begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert waiting.cancelled == 1


@pytest.mark.parametrize("headers", [{}, KEY])
async def test_a_caller_can_cancel_its_own_job(client: Client, headers: dict[str, str]) -> None:
    waiting = WaitingConductor()
    process = client(waiting)
    request = asyncio.ensure_future(post(process, **headers))
    await waiting.begun.wait()
    path = f"/jobs/{waiting.job_id}"
    assert (await client(policy=ANONYMOUS, peer=STRANGER).delete(path)).status_code == 404
    assert waiting.cancelled == 0
    deleted = await process.delete(path)
    assert (deleted.status_code, deleted.json()["state"]) == (200, "cancelled")
    assert waiting.cancelled == 1
    response = await request
    assert (response.status_code, response.json()["error"]["code"]) == (409, "CANCELLED")
    assert response.headers["x-should-retry"] == "false"
    assert (await process.delete(path)).json()["state"] == "cancelled"


async def test_images_are_made_while_the_ledger_is_away(client: Client) -> None:
    away: Any = AwayLedger()
    alone = client(ledger=away, rate_limit=RateLimit(1, 1))
    assert (await post(alone)).status_code == 201
    for response in (await post(alone, **KEY), await alone.get("/jobs/some")):
        assert response.status_code == 503
        assert response.headers["retry-after"]


async def test_after_a_drain_the_ledger_knows_of_everything(ledger: WatchedLedger) -> None:
    class WaitingStage(CountingStage):
        async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
            begun.set()
            await go.wait()
            async for event in super().advance(sample, segment):
                yield event

    begun, go = asyncio.Event(), asyncio.Event()
    conductor = Conductor(WaitingStage(), None, INFO.models)
    jobs = JobService(conductor, ledger, replace(INFO, refiner=None))
    job = plan_job(GenerationRequest(prompt="a"), [], jobs.info, 1, GENERATE)
    running = asyncio.ensure_future(jobs.run(job, RequestContext("me", "/generate")))
    await begun.wait()
    go.set()
    await conductor.drain()
    await jobs.drain()
    meta = json.loads((await running).meta)
    remembered = await ledger.get(meta["jobId"], 0)
    assert remembered is not None
    assert remembered.state is JobState.SUCCEEDED
