"""Jobs and keys, with several ingress processes on one ledger."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.errors import DeadlineExceeded, LedgerAway, OutOfMemory
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.generation import plan_generate
from serve_app.ingress.job_service import JobService, RequestContext
from serve_app.ingress.native.schemas import GenerateRequest
from tests.ingress.conftest import Client
from tests.support.fake_conductor import INFO, PROFILES, FailingConductor, FakeConductor
from tests.support.stage_doubles import CountingStage, StageEvents

ASKED = {"prompt": "a fox", "imageCount": 1}
KEY = {"Idempotency-Key": "key-1"}


class Slow(FakeConductor):
    """Paints when it is told to; says what was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def generate(self, task: ImageTask) -> GeneratedImage:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().generate(task)


class Away:
    """A ledger that can't be asked."""

    def __getattr__(self, name: str) -> Any:
        async def away(*args: object) -> None:
            raise LedgerAway("the ledger is restarting")

        return away


async def post(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/generate", json=ASKED, headers=headers)


async def test_every_request_is_a_job_that_any_process_can_tell_of(client: Client) -> None:
    answer = (await client().post("/generate", json=ASKED)).json()
    other = await client().get(f"/jobs/{answer['meta']['jobId']}")
    assert other.status_code == 200
    job = other.json()
    assert (job["state"], job["answer"], job["error"]) == ("succeeded", answer, None)


async def test_a_picture_is_ahead_of_what_the_ledger_hears_and_a_look_waits_for_it(
    client: Client, ledger: Ledger
) -> None:
    answer = (await client(ledger_delay=0.5).post("/generate", json=ASKED)).json()
    assert not ledger._db.execute("SELECT id FROM jobs").fetchall()
    other = client(ledger_delay=0.5)
    assert (await other.get(f"/jobs/{answer['meta']['jobId']}")).status_code == 200
    assert (await other.get("/jobs/none")).status_code == 404


async def test_a_job_that_failed_says_why(client: Client, ledger: Ledger) -> None:
    failing = client(FailingConductor(OutOfMemory("no room"), at=0))
    assert (await failing.post("/generate", json=ASKED)).status_code == 503
    row = ledger._db.execute("SELECT id FROM jobs").fetchone()
    job = (await failing.get(f"/jobs/{row[0]}")).json()
    assert job["state"] == "failed"
    assert job["error"] == {"code": "OUT_OF_MEMORY", "message": "no room"}


async def test_fifty_calls_with_one_key_are_one_job_and_fifty_equal_answers(
    client: Client, painter: FakeConductor
) -> None:
    processes = [client() for _ in range(3)]
    answers = await asyncio.gather(
        *(processes[i % 3].post("/generate", json=ASKED, headers=KEY) for i in range(50))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len(painter.calls) == 1


async def test_the_same_key_with_another_body_is_refused(
    client: Client, painter: FakeConductor
) -> None:
    await client().post("/generate", json=ASKED, headers=KEY)
    other = await client().post("/generate", json=ASKED | {"steps": 3}, headers=KEY)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "IDEMPOTENCY_CONFLICT"
    assert len(painter.calls) == 1


async def test_the_order_of_names_in_a_body_makes_no_difference(
    client: Client, painter: FakeConductor
) -> None:
    await client().post("/generate", json=ASKED, headers=KEY)
    turned = dict(reversed(ASKED.items()))
    assert (await client().post("/generate", json=turned, headers=KEY)).status_code == 201
    assert len(painter.calls) == 1


async def test_a_key_is_each_callers_and_each_routes_own(
    client: Client, painter: FakeConductor
) -> None:
    await client().post("/generate", json=ASKED, headers=KEY)
    await client(policy=replace_anonymous(), peer="10.0.0.9").post(
        "/generate", json=ASKED | {"steps": 3}, headers=KEY
    )
    wanted = {"prompt": "a fox"}
    await client().post("/v1/images/generations", json=wanted, headers=KEY)
    assert len(painter.calls) == 3


def replace_anonymous() -> Any:
    from tests.ingress.conftest import POLICY

    return replace(POLICY, anonymous=True)


async def test_a_request_without_a_seed_is_drawn_one_only_once(
    client: Client, painter: FakeConductor, ledger: Ledger
) -> None:
    first = (await post(client(), **KEY)).json()
    ledger._db.execute("DELETE FROM jobs")  # as after ten minutes
    again = (await post(client(), **KEY)).json()
    assert len(painter.calls) == 2
    assert again["images"] == first["images"]
    assert again["meta"]["seeds"] == first["meta"]["seeds"]


async def test_what_failed_may_be_tried_again_under_its_key(client: Client) -> None:
    failing = client(FailingConductor(OutOfMemory("no room"), at=0))
    assert (await post(failing, **KEY)).status_code == 503
    await asyncio.sleep(0)
    assert (await post(client(), **KEY)).status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
async def test_a_key_is_printable_and_not_too_long(client: Client, key: str) -> None:
    answer = await client().post(
        "/generate", json=ASKED, headers=[(b"Idempotency-Key", key.encode())]
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["path"] == "Idempotency-Key"


async def test_who_leaves_cancels_the_job_unless_a_key_says_it_will_be_back(
    client: Client,
) -> None:
    for headers, cancelled in (({}, 1), (KEY, 0)):
        slow = Slow()
        one = client(slow)
        asked = asyncio.ensure_future(post(one, **headers))
        await slow.begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.sleep(0)
        assert slow.cancelled == cancelled
        slow.go.set()
    answer = await post(client(), **KEY)
    assert answer.status_code == 201
    assert len(slow.calls) == 1


async def test_any_process_can_cancel_a_job(client: Client, ledger: Ledger) -> None:
    slow = Slow()
    maker = client(slow, ledger=ledger)
    asked = asyncio.ensure_future(post(maker))
    await slow.begun.wait()
    id = ledger._db.execute("SELECT id FROM jobs").fetchone()[0]
    stranger = await client(policy=replace_anonymous(), peer="10.0.0.9").delete(f"/jobs/{id}")
    assert stranger.status_code == 404
    assert slow.cancelled == 0
    told = await maker.delete(f"/jobs/{id}")
    assert (told.status_code, told.json()["state"]) == (200, "cancelled")
    assert slow.cancelled == 1
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CANCELLED")
    assert answer.headers["x-should-retry"] == "false"
    assert (await maker.delete(f"/jobs/{id}")).json()["state"] == "cancelled"


async def test_who_joined_a_job_hears_that_it_was_cancelled(client: Client, ledger: Ledger) -> None:
    slow = Slow()
    maker = client(slow)
    asked = [asyncio.ensure_future(post(one, **KEY)) for one in (maker, client())]
    await slow.begun.wait()
    id = ledger._db.execute("SELECT id FROM jobs").fetchone()[0]
    await asyncio.sleep(0.01)
    await maker.delete(f"/jobs/{id}")
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [409, 409]


async def test_what_a_dead_process_left_is_made_by_who_asks_again(
    client: Client, painter: FakeConductor, ledger: Ledger
) -> None:
    slow = Slow()
    lost = asyncio.ensure_future(post(client(slow), **KEY))
    await slow.begun.wait()
    seed = ledger._db.execute("SELECT seed FROM claims").fetchone()[0]
    ledger._db.execute("UPDATE jobs SET owner = 'a process that is gone'")
    ledger._began -= 60
    answer = (await post(client(), **KEY)).json()
    assert answer["meta"]["seeds"] == [seed]
    lost.cancel()


async def test_pictures_are_made_while_the_ledger_is_away(client: Client) -> None:
    alone = client(ledger=Away(), rate_limit=RateLimit(1, 1))
    assert (await post(alone)).status_code == 201
    for answer in (await post(alone, **KEY), await alone.get("/jobs/some")):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]


async def test_a_caller_may_use_so_many_megapixel_steps(client: Client) -> None:
    spec = {"prompt": "a", "imageCount": 2, "steps": 10, "width": 1000, "height": 1000}
    limited = client(rate_limit=RateLimit(rate=1, burst=25))
    assert (await limited.post("/generate", json=spec)).status_code == 201
    refused = await limited.post("/generate", json=spec)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "RATE_LIMITED"
    assert 14 <= int(refused.headers["retry-after"]) <= 15
    cheap = await limited.post("/generate", json=spec | {"steps": 1})
    assert cheap.status_code == 201


async def test_what_failed_by_our_fault_costs_nothing(client: Client) -> None:
    spec = {"prompt": "a", "imageCount": 1, "steps": 10, "width": 1000, "height": 1000}
    limited = client(
        FailingConductor(OutOfMemory("no room"), at=0), rate_limit=RateLimit(rate=1, burst=15)
    )
    for _ in range(3):
        assert (await limited.post("/generate", json=spec)).status_code == 503


async def test_everybody_who_has_no_allowance_left_is_told_when_there_is_more(
    client: Client,
) -> None:
    spec = {"prompt": "a", "imageCount": 1, "steps": 10, "width": 1000, "height": 1000}
    limited = [client(rate_limit=RateLimit(rate=1, burst=15), ledger_delay=0.05) for _ in range(2)]
    assert (await limited[0].post("/generate", json=spec)).status_code == 201
    answers = await asyncio.gather(
        *(one.post("/generate", json=spec, headers=KEY) for one in limited)
    )
    assert [answer.status_code for answer in answers] == [429, 429]
    assert all("retry-after" in answer.headers for answer in answers)


async def test_who_joined_a_job_hears_why_it_failed_and_nobody_makes_it_again(
    client: Client,
) -> None:
    class Late(Slow):
        async def generate(self, task: ImageTask) -> GeneratedImage:
            self.calls.append(task)
            await super().generate(task)
            raise DeadlineExceeded("too late")

    late = Late()
    asked = [asyncio.ensure_future(post(client(late), **KEY)) for _ in range(5)]
    await late.begun.wait()
    await asyncio.sleep(0.01)
    late.calls.clear()
    late.go.set()
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [504] * 5
    assert {answer.json()["error"]["code"] for answer in answers} == {"DEADLINE_EXCEEDED"}
    assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
    assert len(late.calls) == 1


async def test_after_a_drain_the_ledger_knows_of_everything(ledger: Ledger) -> None:
    class Waiting(CountingStage):
        async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
            begun.set()
            await go.wait()
            async for event in super().advance(sample, segment):
                yield event

    begun, go = asyncio.Event(), asyncio.Event()
    conductor = Conductor(Waiting(), None, INFO.models)
    desk = JobService(conductor, ledger, replace(INFO, refiner=None))
    order = plan_generate(GenerateRequest(prompt="a"), desk.info, 1)
    running = asyncio.ensure_future(desk.run(order, RequestContext("me", "/generate")))
    await begun.wait()
    go.set()
    await conductor.drain()
    await desk.drain()
    states = ledger._db.execute("SELECT state FROM jobs").fetchall()
    assert states == [("succeeded",)]
    await running


async def test_a_refused_prompt_is_never_made(client: Client, painter: FakeConductor) -> None:
    careful = client(prompt_filter=WordList(["gore"]))
    for route in ("/generate", "/v1/images/generations"):
        answer = await careful.post(route, json={"prompt": "much gore"})
        assert answer.status_code == 422
        assert answer.json()["error"]["code"].upper() == "SAFETY_BLOCK"
        assert "gore" not in answer.text
    assert not painter.calls


async def test_a_refused_word_in_what_a_picture_remembers_counts_too(
    client: Client, painter: FakeConductor
) -> None:
    made = (await client().post("/generate", json={"prompt": "gore", "imageCount": 1})).json()
    asked = {"images": made["images"], "prompt": "warmer"}
    answer = await client(prompt_filter=WordList(["gore"])).post("/refine", json=asked)
    assert answer.status_code == 422


async def test_terms_are_accepted_once_and_by_every_caller_for_itself(client: Client) -> None:
    facts = replace(INFO, terms_required=True)
    policy = replace_anonymous()
    one = client(facts=facts, policy=policy)
    refused = await one.post("/generate", json=ASKED)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "TERMS_NOT_ACCEPTED"
    told = (await one.get("/licenses")).json()
    assert told["required"] is True
    assert told["terms"] in refused.json()["error"]["message"]
    stale = await one.post("/licenses", json={"accept": True, "terms": "others"})
    assert stale.status_code == 403
    accepted = await one.post("/licenses", json={"accept": True, "terms": told["terms"]})
    assert accepted.status_code == 204
    for process in (one, client(facts=facts, policy=policy)):
        assert (await process.post("/generate", json=ASKED)).status_code == 201
    other = client(facts=facts, policy=policy, peer="10.0.0.9")
    assert (await other.post("/generate", json=ASKED)).status_code == 403


async def test_the_licence_of_every_model_is_passed_on(client: Client) -> None:
    told = (await client().get("/licenses")).json()
    assert [one["model"] for one in told["licenses"]] == ["sdxl-base-1.0", "sdxl-refiner-1.0"]
    assert told["licenses"][0]["restrictions"] == ["harm"]
    assert told["required"] is False


async def test_the_picture_in_a_jobs_answer_is_the_picture(client: Client) -> None:
    bare = await client().post("/generate", json=ASKED | {"seed": 1}, headers=KEY)
    again = await client().post(
        "/generate", json=ASKED | {"seed": 1}, headers=KEY | {"Accept": "image/png"}
    )
    assert again.content == base64.b64decode(bare.json()["images"][0])
    assert PROFILES
