"""Jobs over HTTP: remembered, made once under a key, cancelled, charged, and refused."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.errors import DeadlineExceeded, LedgerAway, OutOfMemory
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.jobs import Job, JobError, JobResult, JobState
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import LEASE, RESULT_TTL, Ledger
from serve_app.ingress.generation import GenerationRequest, plan_job
from serve_app.ingress.job_service import JobService, RequestContext
from serve_app.ingress.native.schemas import GENERATE
from tests.support.api import POLICY, Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor, WaitingConductor
from tests.support.stage_doubles import CountingStage, StageEvents
from tests.support.waiting import until_async

BODY = {"prompt": "a fox", "imageCount": 1}
KEY = {"Idempotency-Key": "key-1"}
ANONYMOUS = replace(POLICY, anonymous=True)
STRANGER = "10.0.0.9"
TEN_MEGAPIXEL_STEPS = {"prompt": "a", "imageCount": 1, "steps": 10, "width": 1000, "height": 1000}


class WatchedLedger(Ledger):
    """A ledger with a clock to turn; counts who waits for a job, and can delay the end of one."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(None, clock=lambda: self.now)
        self.joined = 0
        self.finishing = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def get(self, id: str, wait: float) -> Job | None:
        self.joined += wait > 0
        return await super().get(id, wait)

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        self.finishing.set()
        await self.may_finish.wait()
        await super().finish(id, owner, state, error, result)


class NoRefunds(WatchedLedger):
    """A ledger that can't be reached while it should give back what a fault has cost."""

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        if cost < 0:
            raise LedgerAway("the ledger is restarting")
        return await super().consume(caller, cost, limit)


class AwayLedger:
    """A ledger that can't be reached."""

    def __getattr__(self, name: str) -> Any:
        async def away(*args: object) -> None:
            raise LedgerAway("the ledger is restarting")

        return away


@pytest.fixture
def ledger() -> WatchedLedger:
    return WatchedLedger()


async def post(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/generate", json=BODY, headers=headers)


async def test_every_request_is_a_job_that_any_process_knows(client: Client) -> None:
    answer = (await client().post("/generate", json=BODY)).json()
    await client.drain()
    response = await client().get(f"/jobs/{answer['meta']['jobId']}")
    assert response.status_code == 200
    job = response.json()
    assert (job["state"], job["result"], job["error"]) == ("succeeded", answer, None)
    assert (await client().get("/jobs/none")).status_code == 404


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


async def test_a_job_has_the_time_of_its_request_in_rfc_3339(
    client: Client, ledger: WatchedLedger
) -> None:
    await ledger.create(Job("known", "address:127.0.0.1", "me", 1767225599.9996), None)
    job = (await client().get("/jobs/known")).json()
    assert job["createdAt"] == "2025-12-31T23:59:59.999Z"


async def test_a_job_that_failed_has_its_error(client: Client) -> None:
    failing = FailingConductor(OutOfMemory("no room"), at=0)
    process = client(failing)
    assert (await post(process)).status_code == 503
    job = (await process.get(f"/jobs/{failing.job_id}")).json()
    assert job["state"] == "failed"
    assert job["error"] == {"code": "OUT_OF_MEMORY", "message": "no room"}


async def test_fifty_calls_with_one_key_are_one_job_and_fifty_equal_responses(
    client: Client, conductor: FakeConductor
) -> None:
    processes = [client() for _ in range(3)]
    responses = await asyncio.gather(*(post(processes[i % 3], **KEY) for i in range(50)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert len(conductor.calls) == 1


async def test_the_same_key_with_another_body_is_refused(
    client: Client, conductor: FakeConductor
) -> None:
    await client().post("/generate", json=BODY, headers=KEY)
    other = await client().post("/generate", json=BODY | {"steps": 3}, headers=KEY)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "IDEMPOTENCY_CONFLICT"
    assert len(conductor.calls) == 1


async def test_the_order_of_names_in_a_body_makes_no_difference(
    client: Client, conductor: FakeConductor
) -> None:
    await client().post("/generate", json=BODY, headers=KEY)
    turned = dict(reversed(BODY.items()))
    assert (await client().post("/generate", json=turned, headers=KEY)).status_code == 201
    assert len(conductor.calls) == 1


async def test_a_key_is_each_callers_and_each_routes_own(
    client: Client, conductor: FakeConductor
) -> None:
    await client().post("/generate", json=BODY, headers=KEY)
    await client(policy=ANONYMOUS, peer=STRANGER).post(
        "/generate", json=BODY | {"steps": 3}, headers=KEY
    )
    await client().post("/v1/images/generations", json={"prompt": "a fox"}, headers=KEY)
    assert len(conductor.calls) == 3


async def test_a_key_keeps_the_seed_that_was_drawn_when_its_result_is_forgotten(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger
) -> None:
    first = (await post(client(), **KEY)).json()
    await client.drain()
    ledger.now += RESULT_TTL + 1
    again = (await post(client(), **KEY)).json()
    assert len(conductor.calls) == 2
    assert again["images"] == first["images"]
    assert again["meta"]["seeds"] == first["meta"]["seeds"]


async def test_what_failed_may_be_tried_again_under_its_key(client: Client) -> None:
    failing = client(FailingConductor(OutOfMemory("no room"), at=0))
    assert (await post(failing, **KEY)).status_code == 503
    await client.drain()
    assert (await post(client(), **KEY)).status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
async def test_a_key_is_printable_and_not_too_long(client: Client, key: str) -> None:
    response = await client().post(
        "/generate", json=BODY, headers=[(b"Idempotency-Key", key.encode())]
    )
    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["path"] == "Idempotency-Key"


async def test_a_caller_who_leaves_cancels_the_job(client: Client) -> None:
    waiting = WaitingConductor()
    request = asyncio.ensure_future(post(client(waiting)))
    await waiting.begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert waiting.cancelled == 1


async def test_a_caller_who_leaves_with_a_key_may_come_back(client: Client) -> None:
    waiting = WaitingConductor()
    request = asyncio.ensure_future(post(client(waiting), **KEY))
    await waiting.begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    waiting.go.set()
    assert (await post(client(), **KEY)).status_code == 201
    assert (len(waiting.calls), waiting.cancelled) == (1, 0)


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


async def test_a_caller_who_joined_a_job_learns_that_it_was_cancelled(
    client: Client, ledger: WatchedLedger
) -> None:
    waiting = WaitingConductor()
    first = client(waiting)
    requests = [asyncio.ensure_future(post(process, **KEY)) for process in (first, client())]
    await waiting.begun.wait()
    await until_async(lambda: ledger.joined == 1)
    await first.delete(f"/jobs/{waiting.job_id}")
    assert [response.status_code for response in await asyncio.gather(*requests)] == [409, 409]


async def test_a_job_of_a_dead_process_is_run_again_with_its_id_and_its_seed(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger
) -> None:
    waiting = WaitingConductor()
    lost = asyncio.ensure_future(post(client(waiting), **KEY))
    await waiting.begun.wait()
    ledger.now += LEASE + 1
    meta = (await post(client(), **KEY)).json()["meta"]
    assert meta["seeds"] == [waiting.tasks[0].spec.seed]
    assert meta["jobId"] == waiting.job_id
    lost.cancel()
    waiting.go.set()


async def test_a_job_that_was_taken_over_is_cancelled_by_its_id(
    client: Client, ledger: WatchedLedger
) -> None:
    lost, waiting = WaitingConductor(), WaitingConductor()
    request = asyncio.ensure_future(post(client(lost), **KEY))
    await lost.begun.wait()
    ledger.now += LEASE + 1
    process = client(waiting)
    again = asyncio.ensure_future(post(process, **KEY))
    await waiting.begun.wait()
    assert waiting.job_id == lost.job_id
    assert (await process.delete(f"/jobs/{lost.job_id}")).json()["state"] == "cancelled"
    assert (await again).status_code == 409
    lost.go.set()
    await request


async def test_images_are_made_while_the_ledger_is_away(client: Client) -> None:
    away: Any = AwayLedger()
    alone = client(ledger=away, rate_limit=RateLimit(1, 1))
    assert (await post(alone)).status_code == 201
    for response in (await post(alone, **KEY), await alone.get("/jobs/some")):
        assert response.status_code == 503
        assert response.headers["retry-after"]


async def test_a_caller_may_use_a_number_of_megapixel_steps(client: Client) -> None:
    body = TEN_MEGAPIXEL_STEPS | {"imageCount": 2}
    limited = client(rate_limit=RateLimit(rate=1, burst=25))
    assert (await limited.post("/generate", json=body)).status_code == 201
    refused = await limited.post("/generate", json=body)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "RATE_LIMITED"
    assert refused.headers["retry-after"] == "15"
    cheap = await limited.post("/generate", json=body | {"steps": 1})
    assert cheap.status_code == 201


async def test_what_failed_by_the_services_fault_costs_nothing(client: Client) -> None:
    failing = FailingConductor(OutOfMemory("no room"), at=0)
    limited = client(failing, rate_limit=RateLimit(rate=1, burst=15))
    for _ in range(3):
        response = await limited.post("/generate", json=TEN_MEGAPIXEL_STEPS)
        assert response.status_code == 503
        await client.drain()


class FailingForFoxes(FakeConductor):
    """Has no memory for foxes."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        if "fox" in task.spec.prompt:
            raise OutOfMemory("no room")
        return await super().generate(task)


async def test_a_lost_refund_costs_no_other_job_its_result(client: Client) -> None:
    ledger = NoRefunds()
    ledger.may_finish.clear()
    limit = RateLimit(rate=1, burst=1000)
    caller = client(FailingForFoxes(), ledger=ledger, rate_limit=limit)
    owl = BODY | {"prompt": "an owl"}
    first = (await caller.post("/generate", json=owl)).json()
    assert (await caller.post("/generate", json=BODY)).status_code == 503
    second = (await caller.post("/generate", json=owl)).json()
    ledger.may_finish.set()
    await client.drain()
    for answer in (first, second):
        job = (await caller.get(f"/jobs/{answer['meta']['jobId']}")).json()
        assert (job["state"], job["result"]) == ("succeeded", answer)


async def test_every_caller_over_its_rate_limit_gets_a_retry_after(client: Client) -> None:
    limited = [client(rate_limit=RateLimit(rate=1, burst=15)) for _ in range(2)]
    first = await limited[0].post("/generate", json=TEN_MEGAPIXEL_STEPS)
    assert first.status_code == 201
    responses = await asyncio.gather(
        *(process.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=KEY) for process in limited)
    )
    assert [response.status_code for response in responses] == [429, 429]
    assert all("retry-after" in response.headers for response in responses)


async def test_callers_who_joined_a_job_get_its_error_and_nobody_runs_it_again(
    client: Client, ledger: WatchedLedger
) -> None:
    class LateConductor(WaitingConductor):
        async def generate(self, task: ImageTask) -> GeneratedImage:
            await super().generate(task)
            raise DeadlineExceeded("too late")

    late = LateConductor()
    requests = [asyncio.ensure_future(post(client(late), **KEY)) for _ in range(5)]
    await until_async(lambda: ledger.joined == 4)
    late.go.set()
    responses = await asyncio.gather(*requests)
    assert [response.status_code for response in responses] == [504] * 5
    assert {response.json()["error"]["code"] for response in responses} == {"DEADLINE_EXCEEDED"}
    assert {response.headers["x-should-retry"] for response in responses} == {"false"}
    assert len(late.tasks) == 1


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


async def test_a_refused_prompt_is_never_made(client: Client, conductor: FakeConductor) -> None:
    careful = client(prompt_filter=WordList(["gore"]))
    for route in ("/generate", "/v1/images/generations"):
        response = await careful.post(route, json={"prompt": "much gore"})
        assert response.status_code == 422
        assert response.json()["error"]["code"].upper() == "SAFETY_BLOCK"
        assert "gore" not in response.text
    assert not conductor.calls


async def test_a_refused_word_in_the_prompt_of_a_base_image_counts_too(client: Client) -> None:
    made = (await client().post("/generate", json={"prompt": "gore", "imageCount": 1})).json()
    body = {"images": made["images"], "prompt": "warmer"}
    response = await client(prompt_filter=WordList(["gore"])).post("/refine", json=body)
    assert response.status_code == 422


async def test_terms_are_accepted_once_and_by_every_caller_for_itself(client: Client) -> None:
    info = replace(INFO, terms_required=True)
    process = client(info=info, policy=ANONYMOUS)
    refused = await process.post("/generate", json=BODY)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "TERMS_NOT_ACCEPTED"
    terms = (await process.get("/licenses")).json()
    assert terms["required"] is True
    assert terms["termsDigest"] in refused.json()["error"]["message"]
    stale = await process.post("/licenses", json={"accept": True, "termsDigest": "others"})
    assert stale.status_code == 403
    body = {"accept": True, "termsDigest": terms["termsDigest"]}
    accepted = await process.post("/licenses", json=body)
    assert accepted.status_code == 204
    assert "x-aura-warning" not in accepted.headers
    for same_caller in (process, client(info=info, policy=ANONYMOUS)):
        assert (await same_caller.post("/generate", json=BODY)).status_code == 201
    other = client(info=info, policy=ANONYMOUS, peer=STRANGER)
    assert (await other.post("/generate", json=BODY)).status_code == 403


async def test_the_old_name_of_the_digest_is_understood_with_a_warning(client: Client) -> None:
    process = client(info=replace(INFO, terms_required=True))
    digest = INFO.terms_digest
    accepted = await process.post("/licenses", json={"accept": True, "terms": digest})
    assert accepted.status_code == 204
    assert "terms is now called termsDigest" in accepted.headers["x-aura-warning"]
    assert (await process.post("/generate", json=BODY)).status_code == 201
    for body in ({}, {"terms": digest, "termsDigest": digest}):
        refused = await process.post("/licenses", json={"accept": True} | body)
        assert refused.status_code == 400
        assert refused.json()["error"]["details"][0]["path"] == "termsDigest"


async def test_the_licence_of_every_model_is_passed_on(client: Client) -> None:
    terms = (await client().get("/licenses")).json()
    models = [license["model"] for license in terms["licenses"]]
    assert models == ["sdxl-base-1.0", "sdxl-refiner-1.0"]
    assert terms["licenses"][0]["restrictions"] == ["harm"]
    assert terms["required"] is False


async def test_a_bare_image_under_the_same_key_is_the_same_image(client: Client) -> None:
    headers = KEY | {"Accept": "image/png"}
    response = await client().post("/generate", json=BODY | {"seed": 1}, headers=KEY)
    bare = await client().post("/generate", json=BODY | {"seed": 1}, headers=headers)
    assert bare.content == base64.b64decode(response.json()["images"][0])
