"""Receivers that are told of a job's end, over HTTP and out of the ledger."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from serve_app.core.errors import OutOfMemory
from serve_app.core.service.metrics import WEBHOOK_TRIES, WEBHOOKS_WAITING, InMemoryMeter
from serve_app.core.service.webhooks import (
    CLAIMED_WAIT_S,
    LEASE_S,
    MAX_TRIES,
    RETRY_S,
    WebhookReceiver,
)
from serve_app.ingress.job_spool import JobSpool
from serve_app.ingress.webhooks import WebhookSender
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor, WaitingConductor
from tests.support.interrupted_jobs import newest, resume
from tests.support.job_requests import KEY
from tests.support.ledgers import CutOffLedger, WatchedLedger
from tests.support.waiting import until_async
from tests.support.webhook_receiver import (
    SECRET,
    WHSEC,
    Delivery,
    WebhookReceiverServer,
    webhook_receiver,
)

BODY: dict[str, Any] = {"prompt": "a harbour in fog", "imageCount": 1}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiverServer]:
    with webhook_receiver() as server:
        yield server


@pytest.fixture
def meter() -> InMemoryMeter:
    return InMemoryMeter()


@pytest.fixture
async def sender(
    ledger: WatchedLedger, receiver: WebhookReceiverServer, meter: InMemoryMeter
) -> AsyncIterator[WebhookSender]:
    """Yield one that has begun, and looks often into a ledger whose clock a test turns."""
    receivers = [WebhookReceiver(receiver.url, (SECRET,))]
    sender = WebhookSender(ledger, receivers, meter, timeout_s=0.3, poll_s=0.02)
    sender.start()
    yield sender
    await sender.stop()


async def made(client: Client, receiver: WebhookReceiverServer, maker: FakeConductor) -> str:
    """Have one image made that names the receiver, and return the id of its job."""
    async with client(maker, webhook_urls=frozenset({receiver.url})) as caller:
        answer = await caller.post("/generate", json={**BODY, "webhook": receiver.url})
        assert answer.status_code == 201, answer.text
        await client.drain()
        id: str = answer.json()["meta"]["jobId"]
        return id


async def delivered(receiver: WebhookReceiverServer, count: int) -> list[Delivery]:
    """Return what came, once so many did."""
    await until_async(lambda: len(receiver.deliveries) >= count)
    return receiver.deliveries


async def settled(meter: InMemoryMeter, outcome: str, count: int = 1) -> None:
    await until_async(lambda: meter.times(WEBHOOK_TRIES, outcome=outcome) == count)


async def is_empty(ledger: WatchedLedger, receiver: WebhookReceiverServer) -> bool:
    return (await ledger.take_webhooks(receiver.url, 0)).wait is None


async def until_empty(ledger: WatchedLedger, receiver: WebhookReceiverServer) -> None:
    async with asyncio.timeout(10):
        while not await is_empty(ledger, receiver):
            await asyncio.sleep(0.01)


async def test_a_receiver_is_notified_once_and_can_verify_it(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    sender: WebhookSender,
) -> None:
    id = await made(client, receiver, conductor)
    (delivery,) = await delivered(receiver, 1)
    Verifier(WHSEC).verify(delivery.body, {name.lower(): v for name, v in delivery.headers.items()})
    assert delivery.path == "/hook?of=aura"
    assert delivery.headers["Content-Type"] == "application/json"
    content = json.loads(delivery.body)
    assert content["type"] == "job.succeeded"
    assert (content["data"]["jobId"], content["data"]["state"]) == (id, "succeeded")
    assert "harbour" not in delivery.body
    await until_empty(ledger, receiver)
    assert len(receiver.deliveries) == 1


async def test_failures_and_cancelled_jobs_are_delivered_too(
    client: Client, receiver: WebhookReceiverServer, sender: WebhookSender
) -> None:
    body, urls = {**BODY, "webhook": receiver.url}, frozenset({receiver.url})
    waiting = WaitingConductor()
    async with (
        client(FailingConductor(OutOfMemory("no room"), at=0), webhook_urls=urls) as failing,
        client(waiting, webhook_urls=urls) as cancelled,
    ):
        await failing.post("/generate", json=body)
        submitted = await cancelled.post(
            "/generate", json=body, headers={"Prefer": "respond-async"}
        )
        await waiting.begun.wait()
        await cancelled.delete(submitted.headers["location"])
        found = [json.loads(delivery.body)["data"] for delivery in await delivered(receiver, 2)]
    ends = {(data["state"], data["errorCode"]) for data in found}
    assert ends == {("failed", "OUT_OF_MEMORY"), ("cancelled", None)}


async def test_a_receiver_that_fails_is_tried_again_under_the_same_id_until_it_answers(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    sender: WebhookSender,
) -> None:
    receiver.answers = [500, 503]
    await made(client, receiver, conductor)
    for tries in (1, 2):
        await settled(meter, "failed", tries)
        ledger.now += RETRY_S[tries - 1] * 1.2
    await settled(meter, "delivered")
    await until_empty(ledger, receiver)
    assert len({delivery.headers["webhook-id"] for delivery in receiver.deliveries}) == 1


async def test_after_the_last_try_it_is_given_up(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    sender: WebhookSender,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.answers = [500] * 20
    id = await made(client, receiver, conductor)
    for tries in range(1, MAX_TRIES):
        await settled(meter, "failed", tries)
        ledger.now += RETRY_S[-1] * 1.2
    await settled(meter, "given_up")
    await until_empty(ledger, receiver)
    assert len(receiver.deliveries) == MAX_TRIES
    assert f"the webhook of job {id} to 127.0.0.1 is given up after 8 tries" in caplog.text
    assert "/hook" not in caplog.text


async def test_a_receiver_that_answers_410_is_not_tried_again(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    sender: WebhookSender,
) -> None:
    receiver.answers = [410]
    await made(client, receiver, conductor)
    await until_empty(ledger, receiver)
    assert len(receiver.deliveries) == 1


async def test_a_redirect_is_a_failure_and_is_not_followed(
    client: Client,
    conductor: FakeConductor,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    sender: WebhookSender,
) -> None:
    receiver.answers = [307]
    await made(client, receiver, conductor)
    await settled(meter, "failed")
    assert meter.value(WEBHOOKS_WAITING, receiver="127.0.0.1") == 1
    assert [delivery.path for delivery in receiver.deliveries] == ["/hook?of=aura"]


async def test_a_receiver_that_does_not_answer_in_time_has_failed(
    client: Client,
    conductor: FakeConductor,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    sender: WebhookSender,
) -> None:
    receiver.may_answer.clear()
    await made(client, receiver, conductor)
    await settled(meter, "failed")
    receiver.may_answer.set()


async def test_an_address_that_can_not_be_called_is_given_up_like_any_other(
    client: Client, conductor: FakeConductor, ledger: WatchedLedger, meter: InMemoryMeter
) -> None:
    url = "http://127.0.0.1:99999/"
    sender = WebhookSender(ledger, [WebhookReceiver(url, (SECRET,))], meter, poll_s=0.02)
    sender.start()
    async with client(conductor, webhook_urls=frozenset({url})) as caller:
        await caller.post("/generate", json={**BODY, "webhook": url})
        await settled(meter, "failed")
    await sender.stop()


async def test_no_proxy_of_the_environment_is_used(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("NO_PROXY", "")
    sender = WebhookSender(ledger, [WebhookReceiver(receiver.url, (SECRET,))], meter, poll_s=0.02)
    sender.start()
    await made(client, receiver, conductor)
    await settled(meter, "delivered")
    await sender.stop()


async def test_a_silent_receiver_holds_back_no_other(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
) -> None:
    with webhook_receiver() as other:
        receivers = [WebhookReceiver(server.url, (SECRET,)) for server in (receiver, other)]
        sender = WebhookSender(ledger, receivers, meter, poll_s=0.02)
        sender.start()
        receiver.may_answer.clear()
        await made(client, receiver, conductor)
        await made(client, other, conductor)
        await delivered(other, 1)
        receiver.may_answer.set()
        await settled(meter, "delivered", 2)
        await sender.stop()


async def test_what_a_process_leaves_another_delivers_after_the_lease(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
) -> None:
    receivers = [WebhookReceiver(receiver.url, (SECRET,))]
    first = WebhookSender(ledger, receivers, meter, poll_s=0.02)
    first.start()
    receiver.may_answer.clear()
    await made(client, receiver, conductor)
    await delivered(receiver, 1)
    await first.stop()  # in the middle of its try
    receiver.may_answer.set()
    second = WebhookSender(ledger, receivers, meter, poll_s=0.02)
    second.start()
    ledger.now += LEASE_S
    await settled(meter, "delivered")
    await second.stop()
    ids = {delivery.headers["webhook-id"] for delivery in receiver.deliveries}
    assert (len(receiver.deliveries), len(ids)) == (2, 1)


async def test_it_goes_on_when_the_ledger_is_back(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away: Any = CutOffLedger(ledger)
    away.is_cut_off = True
    sender = WebhookSender(away, [WebhookReceiver(receiver.url, (SECRET,))], meter, poll_s=0.02)
    sender.start()
    await made(client, receiver, conductor)
    assert not receiver.deliveries
    away.is_cut_off = False
    await settled(meter, "delivered")
    await sender.stop()
    assert not caplog.records


@pytest.mark.parametrize("route", ["/generate", "/refine"])
async def test_an_address_that_is_not_listed_is_refused_and_none_is_listed(
    client: Client, receiver: WebhookReceiverServer, conductor: FakeConductor, route: str
) -> None:
    listed = frozenset({receiver.url})
    body = BODY if route == "/generate" else {"prompt": "a", "images": ["x"]}
    async with client(conductor, webhook_urls=listed) as caller:
        for url in (receiver.url + "/", receiver.url.upper(), "http://169.254.169.254/"):
            answer = await caller.post(route, json={**body, "webhook": url})
            assert answer.status_code == 400
            assert answer.json()["error"]["details"] == [
                {"path": "webhook", "message": "must be exactly an address of WEBHOOK_URLS"}
            ]
            assert receiver.url not in answer.text
    assert not conductor.calls


async def test_a_submitted_job_need_not_be_polled(
    client: Client,
    conductor: FakeConductor,
    receiver: WebhookReceiverServer,
    sender: WebhookSender,
) -> None:
    async with client(conductor, webhook_urls=frozenset({receiver.url})) as caller:
        submitted: httpx.Response = await caller.post(
            "/generate",
            json={**BODY, "webhook": receiver.url},
            headers={"Prefer": "respond-async"},
        )
        (delivery,) = await delivered(receiver, 1)
        id = json.loads(delivery.body)["data"]["jobId"]
        assert submitted.headers["location"] == f"/jobs/{id}"
        job = (await caller.get(f"/jobs/{id}")).json()
    assert job["state"] == "succeeded"
    assert len(job["result"]["images"]) == 1


async def test_a_job_that_was_stopped_is_delivered_by_the_process_that_finishes_it(
    client: Client,
    conductor: FakeConductor,
    ledger: WatchedLedger,
    spool: JobSpool,
    receiver: WebhookReceiverServer,
    meter: InMemoryMeter,
) -> None:
    """Which may take minutes to start, as large models do."""
    waiting, body = WaitingConductor(), {**BODY, "webhook": receiver.url}
    first = client(waiting, spool=spool, webhook_urls=frozenset({receiver.url}))
    call = asyncio.ensure_future(first.post("/generate", json=body, headers=KEY))
    await waiting.begun.wait()
    await newest(client).stop()
    assert (await call).status_code == 503
    ledger.now += CLAIMED_WAIT_S - 1
    sender = WebhookSender(ledger, [WebhookReceiver(receiver.url, (SECRET,))], meter, poll_s=0.02)
    sender.start()
    resume(client, spool, conductor)  # where nobody may name a receiver any more
    await settled(meter, "delivered")
    await until_empty(ledger, receiver)
    await sender.stop()
    assert [json.loads(each.body)["type"] for each in receiver.deliveries] == ["job.succeeded"]
