"""What outlives a process, through Ray and over HTTP: jobs, idempotency keys and the ledger."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from standardwebhooks import Webhook as Verifier

from tests.support.service import APP, LONG, Service
from tests.support.waiting import until
from tests.support.webhook_receiver import WHSEC, WebhookReceiverServer

pytestmark = pytest.mark.ray

BODY = {"prompt": "a red fox", "steps": 4, "imageCount": 1}


def pids(deployment: str) -> list[int]:
    """Return the processes of a deployment's replicas that this test run has started."""
    title = f"ServeReplica:{APP}:{deployment}"
    children = psutil.Process().children(recursive=True)
    return [process.pid for process in children if title in "".join(process.cmdline())]


def post_with_key(service: Service, key: str, **body: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    return httpx.post(f"{service.address}/generate", json=body, headers=headers, timeout=180)


def test_a_finished_job_can_be_fetched_by_its_id(service: Service) -> None:
    answer = service.post("/generate", **BODY).json()
    job = until(lambda: httpx.get(f"{service.address}/jobs/{answer['meta']['jobId']}").json())
    assert (job["state"], job["result"]) == ("succeeded", answer)


def test_a_receiver_that_a_job_names_is_notified_of_its_end(
    service: Service, receiver: WebhookReceiverServer
) -> None:
    meta = service.post("/generate", **BODY, webhook=receiver.url).json()["meta"]
    (delivery,) = until(lambda: receiver.deliveries)
    Verifier(WHSEC).verify(
        delivery.body, {name.lower(): value for name, value in delivery.headers.items()}
    )
    assert json.loads(delivery.body)["data"]["jobId"] == meta["jobId"]


def test_concurrent_requests_with_one_key_are_one_job(service: Service) -> None:
    finished = sum(stats.engine.finished for stats in service.stats("base"))
    with ThreadPoolExecutor(8) as callers:
        responses = list(
            callers.map(lambda _: post_with_key(service, "together", **BODY), range(8))
        )
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum(stats.engine.finished for stats in service.stats("base")) == finished + 1
    assert post_with_key(service, "together", **BODY, seed=1).status_code == 422


def test_a_job_is_cancelled_by_its_id_and_frees_its_engine(service: Service) -> None:
    with ThreadPoolExecutor(1) as caller:
        response = caller.submit(service.post, "/generate", **LONG)
        at_work = until(
            lambda: [id for stats in service.stats("base") for id in stats.engine.positions]
        )
        job = at_work[0].rsplit("-", 1)[0]
        cancelled = httpx.delete(f"{service.address}/jobs/{job}", timeout=30)
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        assert response.result().json()["error"]["code"] == "CANCELLED"
    until(lambda: not service.is_busy("base"))


def leave(service: Service, key: str | None, body: dict[str, Any]) -> None:
    """Ask for an image, and close the connection while it is being made."""
    headers = {"Idempotency-Key": key} if key else {}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.address}/generate", json=body, headers=headers, timeout=1.0)


@pytest.mark.long  # the short chaos tests have clients vanish too
def test_images_with_a_key_are_made_although_their_clients_left(service: Service) -> None:
    expected = service.expected_image(0.8)
    until(lambda: not service.is_busy("base"))
    previous = service.counts("base")
    keys = [f"left-{number}" for number in range(6)]
    with ThreadPoolExecutor(9) as callers:
        list(callers.map(lambda key: leave(service, key, LONG), (*keys, *[None] * 3)))
        until(lambda: not service.is_busy("base") and not service.is_busy("refiner"), 120)
        counts = service.counts("base")
        assert counts["finished"] - previous["finished"] == len(keys)
        assert counts["cancelled"] - previous["cancelled"] <= 3  # of a request that was assigned
        responses = list(callers.map(lambda key: post_with_key(service, key, **LONG), keys))
    assert {response.status_code for response in responses} == {201}
    images = {image for response in responses for image in response.json()["images"]}
    assert images == {expected}
    assert service.counts("base") == counts, "an image was made twice"


def test_images_are_made_while_the_ledger_restarts_and_it_keeps_its_jobs(
    service: Service,
) -> None:
    first = post_with_key(service, "outlives", **BODY)
    (killed,) = pids("Ledger")
    os.kill(killed, signal.SIGKILL)
    assert service.post("/generate", **BODY).status_code == 201
    again = post_with_key(service, "outlives", **BODY)
    assert again.content == first.content
    assert pids("Ledger") != [killed]
    id = first.json()["meta"]["jobId"]
    assert httpx.get(f"{service.address}/jobs/{id}").json()["result"] == first.json()


def test_a_job_whose_ingress_dies_is_made_again_under_its_key(
    service: Service,
) -> None:
    expected = service.expected_image(0.8)  # the default
    with ThreadPoolExecutor(1) as caller:
        lost = caller.submit(post_with_key, service, "ingress", **LONG)
        until(lambda: service.is_busy("base"))
        for ingress in pids("Ingress"):  # either of them may have it
            os.kill(ingress, signal.SIGKILL)
        assert lost.result().status_code == 500  # the proxy's own answer
    until(lambda: is_alive(service), 90)
    again = post_with_key(service, "ingress", **LONG)
    assert again.status_code == 201, again.text
    assert again.json()["images"] == [expected]


def is_alive(service: Service) -> bool:
    try:
        return httpx.get(f"{service.address}/livez", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_client_refused_in_the_middle_of_a_large_body_gets_the_response(service: Service) -> None:
    length = 2**25
    head = f"POST /generate HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {length}\r\n\r\n"
    where = ("127.0.0.1", int(service.address.rpartition(":")[2]))
    with socket.create_connection(where, timeout=30) as connection:
        connection.sendall(head.encode() + b" " * length)
        assert b"403" in connection.recv(100)


@pytest.mark.parametrize("sent", [None, "mine-1"])
def test_a_response_has_one_request_id(service: Service, sent: str | None) -> None:
    headers = {"X-Request-Id": sent} if sent else {}
    (id,) = httpx.get(f"{service.address}/livez", headers=headers).headers.get_list("x-request-id")
    assert id == (sent or id)


def test_our_request_id_precedes_a_harmful_one_that_the_proxy_repeats(service: Service) -> None:
    headers = {"X-Request-Id": "not harmless!"}
    answer = httpx.get(f"{service.address}/nothing", headers=headers)
    ours, _ = answer.headers.get_list("x-request-id")
    assert answer.json()["error"]["requestId"] == ours
    assert ours.isalnum()


def test_requests_of_other_machines_through_a_proxy_need_a_key(
    service: Service,
) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7"}
    refused = httpx.post(f"{service.address}/generate", json=BODY, headers=headers)
    assert refused.status_code == 401
    forged = httpx.get(f"{service.address}/v1/models", headers={"Host": "evil.example"})
    assert forged.json()["error"]["code"] == "forbidden_host"
