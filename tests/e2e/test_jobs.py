"""What outlives a process, through Ray and over HTTP: jobs, keys, the ledger that knows them."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import APP, LONG, Service, until

pytestmark = pytest.mark.ray

ASKED = {"prompt": "a red fox", "steps": 4, "imageCount": 1}


def pids(deployment: str) -> list[int]:
    """The processes of a deployment's replicas, among those that this test run has started."""
    title = f"ServeReplica:{APP}:{deployment}"
    ours = psutil.Process().children(recursive=True)
    return [process.pid for process in ours if title in "".join(process.cmdline())]


def asked_with(service: Service, key: str, **body: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    return httpx.post(f"{service.address}/generate", json=body, headers=headers, timeout=180)


def test_a_job_is_known_after_its_answer_and_may_be_asked_for_again(service: Service) -> None:
    answer = service.post("/generate", **ASKED).json()
    job = until(lambda: httpx.get(f"{service.address}/jobs/{answer['meta']['jobId']}").json())
    assert (job["state"], job["answer"]) == ("succeeded", answer)


def test_the_same_key_is_one_job_though_many_ask_at_once(service: Service) -> None:
    finished = sum(f.finished for f in service.facts("base"))
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: asked_with(service, "together", **ASKED), range(8)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.content for a in answers}) == 1
    assert sum(f.finished for f in service.facts("base")) == finished + 1
    assert asked_with(service, "together", **ASKED, seed=1).status_code == 422


def test_a_job_is_cancelled_by_its_id_and_its_engine_is_free(service: Service) -> None:
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(service.post, "/generate", **LONG)
        at_work = until(lambda: [i for f in service.facts("base") for i in f.positions])
        job = at_work[0].rsplit("-", 1)[0]
        told = httpx.delete(f"{service.address}/jobs/{job}", timeout=30)
        assert (told.status_code, told.json()["state"]) == (200, "cancelled")
        assert answer.result().json()["error"]["code"] == "CANCELLED"
    until(lambda: not any(f.positions for f in service.facts("base")), 5)


def test_pictures_are_made_while_the_ledger_is_dead_and_it_comes_back_knowing(
    service: Service,
) -> None:
    first = asked_with(service, "outlives", **ASKED)
    (before,) = pids("Ledger")
    os.kill(before, signal.SIGKILL)
    began = time.monotonic()
    assert service.post("/generate", **ASKED).status_code == 201
    again = asked_with(service, "outlives", **ASKED)
    print(f"the ledger was back within {time.monotonic() - began:.1f} s")
    assert again.content == first.content
    assert pids("Ledger") != [before]
    id = first.json()["meta"]["jobId"]
    assert httpx.get(f"{service.address}/jobs/{id}").json()["answer"] == first.json()


def test_a_job_whose_ingress_dies_is_made_by_who_asks_again_under_its_key(
    service: Service,
) -> None:
    undisturbed = service.undisturbed(0.8)  # the default
    with ThreadPoolExecutor(1) as caller:
        lost = caller.submit(asked_with, service, "ingress", **LONG)
        until(lambda: any(f.positions for f in service.facts("base")))
        (ingress,) = pids("Ingress")
        os.kill(ingress, signal.SIGKILL)
        assert lost.result().status_code == 500  # the proxy's own answer
    until(lambda: is_alive(service))
    again = asked_with(service, "ingress", **LONG)
    assert again.status_code == 201, again.text
    assert again.json()["images"] == [undisturbed]


def is_alive(service: Service) -> bool:
    try:
        return httpx.get(f"{service.address}/livez", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_who_is_refused_in_the_middle_of_a_large_body_hears_the_answer(service: Service) -> None:
    length = 2**25
    head = f"POST /generate HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {length}\r\n\r\n"
    where = ("127.0.0.1", int(service.address.rpartition(":")[2]))
    with socket.create_connection(where, timeout=30) as connection:
        connection.sendall(head.encode() + b" " * length)
        assert b"403" in connection.recv(100)


@pytest.mark.parametrize("sent", [None, "mine-1"])
def test_an_answer_has_one_request_id(service: Service, sent: str | None) -> None:
    headers = {"X-Request-Id": sent} if sent else {}
    (told,) = httpx.get(f"{service.address}/livez", headers=headers).headers.get_list(
        "x-request-id"
    )
    assert told == (sent or told)


def test_ours_comes_before_a_harmful_request_id_that_the_proxy_repeats(service: Service) -> None:
    headers = {"X-Request-Id": "not harmless!"}
    answer = httpx.get(f"{service.address}/nothing", headers=headers)
    ours, _ = answer.headers.get_list("x-request-id")
    assert answer.json()["error"]["requestId"] == ours
    assert ours.isalnum()


def test_what_another_machine_asks_through_a_proxy_is_refused_without_keys(
    service: Service,
) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7"}
    refused = httpx.post(f"{service.address}/generate", json=ASKED, headers=headers)
    assert refused.status_code == 401
    forged = httpx.get(f"{service.address}/v1/models", headers={"Host": "evil.example"})
    assert forged.json()["error"]["code"] == "forbidden_host"
