"""What a caller may do: rate limits, refused prompts, terms."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from serve_app.core.errors import (
    DeadlineExceeded,
    ImageKillsReplica,
    NumericFault,
    OutOfMemory,
    SafetyBlock,
)
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.access import AccessPolicy, by_caller, digests
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor, WaitingConductor
from tests.support.job_requests import ANONYMOUS, BODY, KEY, STRANGER
from tests.support.ledgers import NoRefunds, WatchedLedger

TEN_MEGAPIXEL_STEPS = {"prompt": "a", "imageCount": 1, "steps": 10, "width": 1000, "height": 1000}


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


async def test_a_caller_has_a_quota_of_megapixel_steps_a_day(
    client: Client, ledger: WatchedLedger
) -> None:
    keyed = AccessPolicy(keys=digests(["first-secret", "second-secret"]))
    limited = client(policy=keyed, daily_quotas=by_caller({"first-secret": 25.0}))
    headers = [{"Authorization": f"Bearer {key}-secret"} for key in ("first", "second")]

    async def statuses(times: int, number: int) -> list[int]:
        post = partial(limited.post, "/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers[number])
        return [(await post()).status_code for _ in range(times)]

    ledger.now = 20_000 * 86_400.0 + 86_000
    assert await statuses(3, 0) == [201, 201, 429]
    assert await statuses(3, 1) == [201, 201, 201]
    refused = await limited.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers[0])
    assert refused.headers["retry-after"] == "400"
    assert "your quota of 25 megapixel-steps a day" in refused.json()["error"]["message"]
    ledger.now += 400
    assert await statuses(1, 0) == [201]


async def test_what_the_quota_refuses_is_not_charged_to_the_rate_limit(
    client: Client, ledger: WatchedLedger
) -> None:
    policy, quotas = AccessPolicy(keys=digests(["a-secret"])), by_caller({"a-secret": 5.0})
    headers = {"Authorization": "Bearer a-secret"}
    limited = client(policy=policy, daily_quotas=quotas, rate_limit=RateLimit(rate=0.001, burst=10))
    big = await limited.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers)
    assert "a day" in big.json()["error"]["message"]
    small = await limited.post(
        "/generate", json=TEN_MEGAPIXEL_STEPS | {"steps": 5}, headers=headers
    )
    assert small.status_code == 201


@pytest.mark.parametrize(
    ("failure", "statuses"),
    [
        (OutOfMemory("no room"), [503, 503]),
        (DeadlineExceeded("the image was not ready within 9 s"), [504, 504]),
        (NumericFault("the numbers overflow"), [500, 500]),
        (RuntimeError("a mistake of ours"), [500, 500]),
        (SafetyBlock("the picture is not to be shown"), [422, 429]),
        (ImageKillsReplica("two replicas died with it"), [422, 429]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_was_not_delivered_costs_no_quota_unless_the_request_is_at_fault(
    client: Client, failure: Exception, statuses: list[int]
) -> None:
    failing = FailingConductor(failure, at=0)
    policy, quotas = AccessPolicy(keys=digests(["a-secret"])), by_caller({"a-secret": 10.0})
    limited = client(failing, policy=policy, daily_quotas=quotas)
    headers = {"Authorization": "Bearer a-secret"}
    for status in statuses:
        response = await limited.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers)
        assert response.status_code == status
        await client.drain()


async def test_what_a_stop_has_lost_costs_no_quota(client: Client) -> None:
    policy, quotas = AccessPolicy(keys=digests(["a-secret"])), by_caller({"a-secret": 10.0})
    headers = {"Authorization": "Bearer a-secret"}
    waiting = WaitingConductor()
    stopped = client(waiting, policy=policy, daily_quotas=quotas)
    other = client(policy=policy, daily_quotas=quotas)
    request = asyncio.create_task(
        stopped.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers)
    )
    await waiting.begun.wait()
    assert (await other.post("/generate", json=BODY, headers=headers)).status_code == 429
    assert (await client.jobs[0].stop()).lost == 1
    assert (await request).status_code == 503
    served = await other.post("/generate", json=TEN_MEGAPIXEL_STEPS, headers=headers)
    assert served.status_code == 201


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


async def test_a_refused_prompt_is_never_made(client: Client, conductor: FakeConductor) -> None:
    careful = client(prompt_filter=WordList(["gore"]))
    for route in ("/generate", "/v1/images/generations"):
        response = await careful.post(route, json={"prompt": "much gore"})
        assert response.status_code == 422
        assert response.json()["error"]["code"].upper() == "SAFETY_BLOCK"
        assert "gore" not in response.text
    assert not conductor.calls


async def test_a_refused_word_cannot_hide_in_a_text_that_changes(
    client: Client, conductor: FakeConductor
) -> None:
    careful = client(prompt_filter=WordList(["gore"]))
    for prompt in ("a [fox:gore:0.5]", "a [fox|gore]", "g[x:or:0.5]e", "[go|x]re", "[gore::0.1]"):
        response = await careful.post("/generate", json={"prompt": prompt, "steps": 20})
        assert response.status_code == 422, prompt
    assert not conductor.calls
    allowed = await careful.post("/generate", json={"prompt": "g[x:or e:0.5]"})
    assert allowed.status_code == 201


async def test_a_prompt_of_too_many_texts_is_refused_by_its_field(client: Client) -> None:
    many = "[" + "|".join("abcdefghijklmnopq") + "]"
    for body in ({"prompt": many}, {"prompt": "a", "negativePrompt": many}):
        response = await client().post("/generate", json=body | {"steps": 30})
        assert response.status_code == 400
        (detail,) = response.json()["error"]["details"]
        assert detail["path"] == [*body][-1]
        assert "more than 16 different texts over 30 steps" in detail["message"]


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
