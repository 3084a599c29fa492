"""How a job that is not admitted is answered, and what is left of it."""

import asyncio

import pytest

from serve_app.core.errors import DeadlineExceeded, DeadlineImpossible, Overloaded
from serve_app.core.service.jobs import Job
from tests.support.api import ORIGIN, Client
from tests.support.fake_conductor import FailingConductor, FakeConductor, WaitingConductor
from tests.support.job_requests import BODY, KEY, post
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

FULL = Overloaded("the queue is full: it takes about 130 s", retry_after=17)


async def test_a_refused_request_learns_why_and_when_to_come_back(client: Client) -> None:
    maker = FakeConductor()
    maker.refusal = FULL
    response = await post(client(maker), Origin=ORIGIN)
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["code"], error["message"]) == ("OVERLOADED", FULL.problem)
    assert response.headers["Retry-After"] == "17"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "x-should-retry" not in response.headers


async def test_a_deadline_that_can_t_be_met_is_not_to_be_tried_again(client: Client) -> None:
    maker = FakeConductor()
    maker.refusal = DeadlineImpossible("the image takes about 9 s even alone")
    response = await post(client(maker))
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
    assert response.json()["error"]["code"] == "DEADLINE_EXCEEDED"
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize("headers", [{}, KEY])
async def test_what_was_late_because_of_the_service_may_be_tried_again(
    client: Client, headers: dict[str, str]
) -> None:
    maker = FailingConductor(DeadlineExceeded("the image was not ready within 9 s"), at=0)
    response = await post(client(maker), **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert "x-should-retry" not in response.headers
    assert response.headers["Retry-After"] == "13"


async def test_a_refused_job_leaves_no_trace_in_the_ledger(
    client: Client, ledger: WatchedLedger
) -> None:
    maker = FakeConductor()
    maker.refusal = FULL
    await post(client(maker))
    await client.drain()
    assert ledger.created == []


async def test_the_key_of_a_refused_job_is_free_again(client: Client) -> None:
    maker = FakeConductor()
    process = client(maker)
    maker.refusal = FULL
    assert (await post(process, **KEY)).status_code == 503
    await client.drain()
    maker.refusal = None
    assert (await post(process, **KEY)).status_code == 201


@pytest.mark.parametrize("headers", [{}, KEY])
async def test_the_images_of_a_job_are_admitted_together_until_it_ends(
    client: Client, headers: dict[str, str]
) -> None:
    maker = WaitingConductor()
    before = asyncio.get_running_loop().time()
    body = {**BODY, "imageCount": 3, "timeoutSeconds": 9}
    request = asyncio.ensure_future(client(maker).post("/generate", json=body, headers=headers))
    await until_async(lambda: len(maker.tasks) == 3)
    (tasks,) = maker.admitted
    assert tasks == maker.tasks
    assert {task.timeout_s for task in tasks} == {9}
    (arrived,) = {task.arrived for task in tasks}
    assert arrived is not None
    assert before <= arrived <= asyncio.get_running_loop().time()
    assert maker.open_jobs == 1
    maker.go.set()
    assert (await request).status_code == 201
    assert maker.open_jobs == 0


async def test_a_job_that_is_cancelled_is_owed_no_longer(client: Client) -> None:
    maker = WaitingConductor()
    request = asyncio.ensure_future(post(client(maker)))
    await maker.begun.wait()
    request.cancel()
    await asyncio.wait([request])
    await until_async(lambda: maker.open_jobs == 0)


async def test_processes_tell_each_other_what_they_have(client: Client) -> None:
    first, second = WaitingConductor(), WaitingConductor()
    requests = [asyncio.ensure_future(post(client(maker))) for maker in (first, second)]
    await until_async(lambda: list(second.others) == [{"jobs": 1}])
    for maker in (first, second):
        maker.go.set()
    await asyncio.gather(*requests)


async def test_a_process_that_becomes_idle_says_so(client: Client) -> None:
    first, second = WaitingConductor(), WaitingConductor()
    requests = [asyncio.ensure_future(post(client(maker))) for maker in (first, second)]
    await until_async(lambda: list(second.others) == [{"jobs": 1}])
    first.go.set()
    assert (await requests[0]).status_code == 201
    await until_async(lambda: list(second.others) == [{"jobs": 0}])
    second.go.set()
    await requests[1]


async def test_a_process_has_a_bound_of_open_requests_that_health_is_exempt_from(
    client: Client,
) -> None:
    maker = WaitingConductor()
    process = client(maker, max_jobs=1)
    requests = [asyncio.ensure_future(post(process, **KEY)) for _ in range(2)]
    await until_async(lambda: bool(maker.tasks))
    refused = await post(process, Origin=ORIGIN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "OVERLOADED")
    assert refused.headers["Retry-After"] == "13"  # the maker's seconds
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert (await process.get("/health")).status_code == 200
    maker.go.set()
    assert {(await request).status_code for request in requests} == {201}
    assert (await post(process)).status_code == 201


class SlowLedger(WatchedLedger):
    """A ledger that returns a job when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.may_read = asyncio.Event(), asyncio.Event()

    async def get(self, id: str, wait: float) -> Job | None:
        self.reading.set()
        await self.may_read.wait()
        return await super().get(id, wait)


async def test_calls_that_wait_for_a_job_s_state_have_a_bound_of_their_own(client: Client) -> None:
    ledger = SlowLedger()
    process = client(ledger=ledger, max_jobs=1)
    job = f"/jobs/{(await post(process)).json()['meta']['jobId']}"
    waiting = asyncio.ensure_future(process.get(job))
    await ledger.reading.wait()
    for refused in (await process.get(job), await process.delete(job)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "OVERLOADED")
        assert refused.headers["Retry-After"] == "13"
    for path in ("/livez", "/health", "/licenses", "/docs", "/openapi.json"):
        assert (await process.get(path)).status_code == 200
    assert (await post(process)).status_code == 201
    ledger.may_read.set()
    assert (await waiting).status_code == 200
    assert (await process.get(job)).json()["state"] == "succeeded"
