"""Failures, health, addresses and headers of the native routes."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core import errors
from serve_app.core.service.info import Health, HealthStatus
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor
from tests.support.waiting import until_async


async def test_a_caller_who_leaves_cancels_every_image(client: Client) -> None:
    waiting = FailingConductor(
        errors.OutOfMemory("never: no image has the number it fails at"), at=9
    )
    body = asyncio.ensure_future(
        client(waiting).post("/generate", json={"prompt": "a", "imageCount": 3})
    )
    await until_async(lambda: waiting.begun == 3)
    body.cancel()
    with pytest.raises(asyncio.CancelledError):
        await body
    assert waiting.cancelled == 3


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.OutOfMemory("no room"), 503, "OUT_OF_MEMORY"),
        (errors.ReplicaLost("gone"), 503, "REPLICA_LOST"),
        (errors.Loading("not yet"), 503, "LOADING"),
        (errors.Draining("closing"), 503, "DRAINING"),
        (errors.DeadlineExceeded("too late"), 504, "DEADLINE_EXCEEDED"),
        (errors.DeadlineImpossible("never"), 504, "DEADLINE_EXCEEDED"),
        (errors.NumericFault("the latents are not finite"), 500, "NUMERIC_FAULT"),
        (errors.EngineFault("/secret/path"), 500, "INTERNAL"),
        (errors.CheckpointError("/secret/path"), 500, "INTERNAL"),
        (ValueError("/secret/path"), 500, "INTERNAL"),
    ],
)
async def test_a_failure_has_its_status_cancels_the_siblings_and_tells_no_secrets(
    client: Client, error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingConductor(error)
    with caplog.at_level(logging.CRITICAL):
        answer = await client(failing).post(
            "/generate",
            json={"prompt": "a canary", "imageCount": 3},
            headers={"Origin": "http://localhost:5173"},
        )
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert failing.cancelled == 2
    for secret in ("/", "secret", "Traceback", "ValueError", "canary"):
        assert secret not in answer.text
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert answer.headers["x-request-id"]
    no_retry = isinstance(error, errors.DeadlineImpossible | errors.NumericFault)
    comes_back = status in (503, 504) and not no_retry
    assert answer.headers.get("retry-after") == ("13" if comes_back else None)
    assert answer.headers.get("x-should-retry") == ("false" if no_retry else None)


async def test_health_says_who_is_ready_and_why_not(
    client: Client, conductor: FakeConductor
) -> None:
    ready = await client().get("/health")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "reason": "",
        "model": "sdxl-base-1.0",
        "models": ["sdxl-base-1.0"],
        "cloudModels": [],
        "refiner": "sdxl-refiner-1.0",
        "loras": [],
        "device": "cpu",
        "precision": "fp32",
        "optimizations": {"scheduler": "euler"},
        "replicas": {"base": 1, "refiner": 1},
        "owedSeconds": 0.0,
        "safetyFilters": [],
        "termsRequired": False,
        "warnings": [],
        "version": "9.9.9",
    }
    conductor.current_health = replace(
        conductor.current_health, shortfalls=("base: too little memory",)
    )
    assert (await client().get("/health")).json()["warnings"] == ["base: too little memory"]
    conductor.current_health = Health(
        HealthStatus.LOADING, "no replica of base is ready yet", {"base": 0}, 0.0
    )
    loading = await client().get("/health")
    assert loading.status_code == 503
    assert loading.json()["reason"] == "no replica of base is ready yet"
    assert loading.headers["retry-after"] == "1"
    assert (await client().get("/livez")).json() == {"status": "alive"}


async def test_addresses_and_methods_that_are_not_there(client: Client) -> None:
    missing = await client().get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    wrong = await client().get("/generate")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_only_json_is_read_and_not_without_end(
    client: Client, conductor: FakeConductor
) -> None:
    text = await client().post(
        "/generate", content=b'{"prompt":"a"}', headers={"Content-Type": "text/plain"}
    )
    assert (text.status_code, text.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    headers = {"Content-Type": "application/json"}
    announced = await client().post("/generate", content=b"a" * (33 * 2**20), headers=headers)
    assert (announced.status_code, announced.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")

    async def endless() -> Any:
        for _ in range(40):
            yield b"a" * 2**20

    unannounced = await client().post("/generate", content=endless(), headers=headers)
    assert unannounced.status_code == 413
    assert not conductor.calls


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2_3", True), ("a" * 129, False), ("a b", False), ("", False)]
)
async def test_a_request_id_is_taken_only_when_it_is_harmless(
    client: Client, sent: str, kept: bool
) -> None:
    answer = await client().get("/livez", headers={"X-Request-Id": sent})
    got = answer.headers["x-request-id"]
    assert (got == sent) == kept
    assert len(got) == 32 or kept


async def test_a_preflight_is_answered_for_known_origins_alone(client: Client) -> None:
    body = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key",
    }
    known = await client().options("/generate", headers=body)
    assert known.status_code == 200
    assert known.headers["access-control-max-age"] == "600"
    assert known.headers["access-control-allow-origin"] == "http://localhost:5173"
    strange = await client().options("/generate", headers=body | {"Origin": "http://evil.com"})
    assert "access-control-allow-origin" not in strange.headers


async def test_the_api_describes_itself(client: Client) -> None:
    document = (await client().get("/openapi.json")).json()
    post = document["paths"]["/generate"]["post"]
    assert {"201", "400", "404", "413", "415", "500", "503", "504"} <= set(post["responses"])
    assert "HTTPValidationError" not in str(document)
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert "negativePrompt" in fields
