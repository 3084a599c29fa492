"""What goes wrong in the cloud, and what callers hear of it."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from serve_app.cloud import cloud_image
from serve_app.core.service.metrics import CLOUD_CALLS, IMAGES, InMemoryMeter
from tests.support.cloud_caller import Caller
from tests.support.gemini_stand_in import (
    KEY,
    GeminiStandIn,
    Reply,
    error_of,
    image_part,
    in_seconds,
    made,
    picture,
)
from tests.support.waiting import until

BODY = {"prompt": "a harbour in fog", "imageCount": 1}
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}


async def requested(caller: Caller, **options: Any) -> httpx.Response:
    async with caller(**options) as client:
        return await client.post("/generate", json=BODY)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Return the status, the code and the message of an error."""
    body = answer.json()["error"]
    assert "harbour" not in answer.text
    assert "secret advice" not in answer.text
    return answer.status_code, body["code"], body["message"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=json.dumps({"promptFeedback": {"blockReason": "SAFETY"}}).encode()),
        Reply(body=json.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}).encode()),
        Reply(body=json.dumps({"promptFeedback": {"blockReason": "OTHER"}}).encode()),
        made(reason="SAFETY"),
        made(reason="PROHIBITED_CONTENT"),
        made(reason="IMAGE_SAFETY"),
        made(reason="IMAGE_PROHIBITED_CONTENT"),
        made(reason="IMAGE_RECITATION"),
        made({"text": "I can't draw that"}, reason="BLOCKLIST"),
        made(image_part(picture()), reason="SAFETY"),
        Reply(body=b'{"candidates": [{"content": null, "finishReason": "SPII"}]}'),
    ],
    ids=lambda reply: reply.body.decode()[:60],
)
async def test_a_refusal_for_safety_is_the_callers_in_every_form(
    caller: Caller, gemini: GeminiStandIn, meter: InMemoryMeter, reply: Reply
) -> None:
    gemini.replies = [reply]
    status, code, message = error(await requested(caller))
    assert (status, code) == (422, "SAFETY_BLOCK")
    assert message.startswith("the cloud's safety filter refused the ")
    assert len(gemini.calls) == 1
    assert meter.times(IMAGES, outcome="refused", model="gemini") == 1


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (made({"text": "What a lovely idea"}), "answered with words and no image"),
        (made(reason="NO_IMAGE"), "the cloud's answer has no image"),
        (made(reason="IMAGE_OTHER"), "the cloud's answer has no image"),
        (Reply(body=b"{}"), "the cloud's answer has no image"),
        (Reply(body=b'{"candidates": null}'), "the cloud's answer has no image"),
        (
            Reply(body=b'{"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}}'),
            "the cloud's answer has no image",
        ),
        (Reply(body=b"<html>a login page</html>"), "the cloud's answer can't be read"),
        (Reply(body=b"[1, 2]"), "the cloud's answer can't be read"),
        (Reply(body=b'{"candidates": "none"}'), "the cloud's answer can't be read"),
        (Reply(body=b""), "the cloud's answer can't be read"),
        (Reply(body=b'{"candidates": [', lacks=900), "the connection to the cloud broke"),
        (made(image_part(b"GIF89a, or not")), "sent an image that can't be read"),
        (made(image_part(picture()[:70])), "sent an image that can't be read"),
        (made({"inlineData": {"data": "no base64"}}), "sent an image that can't be read"),
        (Reply(302, headers={"Location": "/elsewhere"}), "redirects (302), which is not followed"),
        (error_of(400, "INVALID_ARGUMENT"), "the cloud failed (400 INVALID_ARGUMENT)"),
        (error_of(504, "DEADLINE_EXCEEDED"), "the cloud failed (504 DEADLINE_EXCEEDED)"),
        (Reply(418, b"{"), "the cloud failed (418)"),
        (Reply(400, b'{"error": "a text"}'), "the cloud failed (400)"),
    ],
    ids=lambda value: value.body.decode(errors="replace")[:40] if isinstance(value, Reply) else "",
)
async def test_an_answer_of_no_use_is_the_clouds_fault_and_not_bought_twice(
    caller: Caller, gemini: GeminiStandIn, reply: Reply, sentence: str
) -> None:
    gemini.replies = [reply]
    status, code, message = error(await requested(caller))
    assert (status, code) == (502, "UPSTREAM_ERROR")
    assert sentence in message
    assert len(gemini.calls) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_an_outage_that_passes_is_not_noticed(
    caller: Caller, gemini: GeminiStandIn, meter: InMemoryMeter, status: int
) -> None:
    gemini.replies = [error_of(status, "UNAVAILABLE")] * 2
    assert (await requested(caller)).status_code == 201
    assert len(gemini.calls) == 3
    assert meter.times(CLOUD_CALLS, outcome="failed") == 2
    assert meter.times(CLOUD_CALLS, outcome="answered") == 1


async def test_an_outage_that_lasts_is_given_up_after_three_calls(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [error_of(503, "UNAVAILABLE")] * 9
    assert error(await requested(caller)) == (
        502,
        "UPSTREAM_ERROR",
        "the cloud failed (503 UNAVAILABLE)",
    )
    assert len(gemini.calls) == 3


async def test_a_cloud_that_cannot_be_reached_is_tried_again_and_given_up(
    caller: Caller, gemini: GeminiStandIn, meter: InMemoryMeter
) -> None:
    answer = await requested(caller, base_url="http://127.0.0.1:9")  # nobody listens there
    assert error(answer)[:2] == (502, "UPSTREAM_ERROR")
    assert "127.0.0.1" not in answer.text
    assert meter.times(CLOUD_CALLS, outcome="failed") == 3


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(429, headers={"Retry-After": "42"}), {42}),
        (error_of(429, "RESOURCE_EXHAUSTED", RETRY_INFO), {18}),
        (Reply(429, headers={"Retry-After": "soon"}), {10}),  # what a call is taken to last
        (error_of(429, "RESOURCE_EXHAUSTED"), {10}),
        (Reply(429, headers={"Retry-After": "999999"}), {3600}),
        (Reply(429, headers={"Retry-After": "-5"}), {10}),
    ],
)
async def test_too_many_calls_are_overload_with_the_clouds_own_retry_after_or_ours(
    caller: Caller,
    gemini: GeminiStandIn,
    meter: InMemoryMeter,
    reply: Reply,
    seconds: set[int],
) -> None:
    gemini.replies = [reply]
    async with caller() as client:
        refused = await client.post("/generate", json=BODY)
        again = await client.post("/generate", json=BODY)
    assert error(refused)[:2] == error(again)[:2] == (503, "OVERLOADED")
    assert int(refused.headers["retry-after"]) in seconds
    assert int(again.headers["retry-after"]) in seconds
    assert len(gemini.calls) == 1  # until that time none is made
    assert meter.times(CLOUD_CALLS, outcome="busy") == 1


async def test_too_many_calls_are_overload_until_the_date_that_the_cloud_says(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [Reply(429, headers={"Retry-After": in_seconds(600)})]
    async with caller() as client:
        refused = await client.post("/generate", json=BODY)
    assert 300 <= int(refused.headers["retry-after"]) <= 600


@pytest.mark.parametrize(
    ("options", "reply", "remedy"),
    [
        ({}, error_of(403, "PERMISSION_DENIED"), "a valid key into GEMINI_API_KEY"),
        ({}, Reply(401, b"denied"), "a valid key into GEMINI_API_KEY"),
        ({}, error_of(400, "FAILED_PRECONDITION"), "look at its billing"),
        ({"model": "gemini-of-last-year"}, None, "set GEMINI_MODEL to one"),
    ],
)
async def test_what_the_operator_must_mend_says_so_and_shows_in_health(
    caller: Caller,
    gemini: GeminiStandIn,
    options: dict[str, Any],
    reply: Reply | None,
    remedy: str,
) -> None:
    gemini.replies = [reply] if reply else []
    async with caller(**options) as client:
        refused = await client.post("/generate", json=BODY)
        health = (await client.get("/health")).json()
        status, code, message = error(refused)
        assert (status, code) == (503, "MODEL_UNAVAILABLE")
        assert remedy in message
        assert health["status"] == "degraded"
        assert health["reason"].startswith("Gemini makes no images: the cloud ")
        assert len(gemini.calls) == 1
        if not options:
            await client.post("/generate", json=BODY)
            assert (await client.get("/health")).json()["status"] == "ready"


async def test_a_wrong_key_is_the_operators_to_mend(caller: Caller, gemini: GeminiStandIn) -> None:
    status, code, message = error(await requested(caller, api_key=SecretStr("another-key")))
    assert (status, code) == (503, "MODEL_UNAVAILABLE")
    assert "a valid key into GEMINI_API_KEY" in message
    assert "another-key" not in message
    assert KEY not in message


async def test_a_slow_answer_is_not_waited_for(caller: Caller, gemini: GeminiStandIn) -> None:
    gemini.may_answer.clear()
    answer = await requested(caller, timeout_s=0.2)
    assert error(answer) == (502, "UPSTREAM_ERROR", "the cloud did not answer in 0.2 s")
    assert len(gemini.calls) == 1  # what it was doing may cost money


async def test_a_pause_within_an_answer_is_not_waited_for(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.may_answer.clear()
    status, code, _ = error(await requested(caller, read_timeout_s=0.2))
    assert (status, code) == (502, "UPSTREAM_ERROR")


async def test_the_callers_deadline_ends_the_call(caller: Caller, gemini: GeminiStandIn) -> None:
    gemini.may_answer.clear()
    async with caller() as client:
        answer = await client.post("/generate", json={**BODY, "timeoutSeconds": 0.3})
    assert error(answer)[:2] == (504, "DEADLINE_EXCEEDED")
    await asyncio.to_thread(_until_hangup, gemini, 1)


async def test_images_beyond_all_bounds_are_not_decoded(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    wide = picture(size=(cloud_image.MAX_SIDE + 8, 8))
    large = picture(size=(5000, cloud_image.MAX_PIXELS // 5000 + 1))
    gemini.replies = [made(image_part(wide)), made(image_part(large))]
    async with caller() as client:
        for _ in range(2):
            answer = await client.post("/generate", json=BODY)
            assert error(answer)[:2] == (502, "UPSTREAM_ERROR")


async def test_the_openai_routes_report_the_same_in_their_own_form(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [made(reason="SAFETY"), made({"text": "no"})]
    async with caller() as client:
        blocked = await client.post("/v1/images/generations", json={"prompt": "a harbour"})
        failed = await client.post("/v1/images/generations", json={"prompt": "a harbour"})
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (422, "safety_block")
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_error")


async def test_a_failure_of_one_image_ends_the_other_calls_of_its_job(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.replies = [made(reason="SAFETY")]
    async with caller(max_calls=1) as client:
        answer = await client.post("/generate", json={**BODY, "imageCount": 3})
    assert answer.status_code == 422
    assert len(gemini.calls) == 1


def _until_hangup(gemini: GeminiStandIn, count: int) -> None:
    until(lambda: gemini.hangups >= count)
