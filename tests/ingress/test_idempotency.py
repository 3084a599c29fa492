"""Requests with an Idempotency-Key: made once, whoever sends them again."""

import asyncio
import base64
from contextvars import ContextVar

import pytest

from serve_app.core.errors import DeadlineExceeded, OutOfMemory
from serve_app.core.replica_errors import ReplicasExhausted
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.tasks import ImageTask
from serve_app.ledger_store.store import RESULT_TTL
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor, WaitingConductor
from tests.support.job_requests import ANONYMOUS, BODY, KEY, STRANGER, post
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async


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
    (detail,) = response.json()["error"]["details"]
    assert detail["path"] == "Idempotency-Key"
    assert detail["message"] == r"must match ^[\x21-\x7e]{1,255}$"


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


async def test_work_for_a_key_is_not_done_in_the_context_of_a_request(client: Client) -> None:
    """Serve cancels what is called in the context of a request whose client left."""
    request = ContextVar("request", default="none")
    contexts = []

    class ContextConductor(FakeConductor):
        async def generate(self, task: ImageTask) -> GeneratedImage:
            contexts.append(request.get())
            return await super().generate(task)

    request.set("of this test")
    await post(client(ContextConductor()), **KEY)
    assert contexts == ["none"]


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
    for response in responses:
        assert response.headers["Retry-After"] == "13"
        assert "x-should-retry" not in response.headers
    assert len(late.tasks) == 1


async def test_callers_who_joined_a_job_that_cost_too_many_replicas_are_not_to_come_again(
    client: Client, ledger: WatchedLedger
) -> None:
    class CostlyConductor(WaitingConductor):
        async def generate(self, task: ImageTask) -> GeneratedImage:
            await super().generate(task)
            raise ReplicasExhausted("5 replicas were lost with this image")

    costly = CostlyConductor()
    process = client(costly)
    requests = [asyncio.ensure_future(post(process, **KEY)) for _ in range(3)]
    await until_async(lambda: ledger.joined == 2)
    costly.go.set()
    for response in await asyncio.gather(*requests):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "REPLICA_LOST")
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers
    job = (await process.get(f"/jobs/{costly.job_id}")).json()
    assert job["state"] == "failed"
    message = "5 replicas were lost with this image"
    assert job["error"] == {"code": "REPLICA_LOST", "message": message, "final": True}


async def test_a_bare_image_under_the_same_key_is_the_same_image(client: Client) -> None:
    headers = KEY | {"Accept": "image/png"}
    response = await client().post("/generate", json=BODY | {"seed": 1}, headers=KEY)
    bare = await client().post("/generate", json=BODY | {"seed": 1}, headers=headers)
    assert bare.content == base64.b64decode(response.json()["images"][0])
