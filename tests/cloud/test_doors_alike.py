"""Every door refuses alike where a cloud makes the images, and no refusal costs a call too many.

The table of `tests/support/door_situations.py`, and what only a cloud can do wrong.
"""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.cloud_service import CloudService, cloud_service
from tests.support.door_situations import CONFLICT, LOCAL, REQUESTS, Situation
from tests.support.doors import DOORS, OPEN, WITH_KEYS, DoorAdapter, Refusal, check_alike
from tests.support.gemini_stand_in import KEY, Reply, error_of, image_part, made, picture
from tests.support.waiting import until_async

BLOCKED = Reply(body=json.dumps({"promptFeedback": {"blockReason": "SAFETY"}}).encode())
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}
BUSY = Reply(429, headers={"Retry-After": "42"})
OUTAGE = error_of(503, "UNAVAILABLE")
FOX = {"count": 1}
HURRIED = {"count": 1, "timeout": 1.0}


@dataclass(frozen=True)
class CloudSituation(Situation):
    """A situation of a cloud: how it replies, and what its maker has to do besides.

    With `company`, a job of so many images has all calls that may be made at once.
    """

    replies: Sequence[Reply] = ()
    gemini: Mapping[str, Any] = field(default_factory=dict)  # options of the maker
    is_silent: bool = False  # no call is answered
    is_cancelled: bool = False  # by a DELETE of the job, once its call is made
    is_draining: bool = False
    company: int = 0
    calls: int = 1  # for the request itself
    is_final: bool = False  # a program that sent it again could buy another call
    retry_after: Sequence[int] = ()  # of which it is one; nothing: what every door says


def _answered(code: str, *replies: Reply, **options: Any) -> CloudSituation:
    status = {"SAFETY_BLOCK": 422, "UPSTREAM_ERROR": 502}.get(code, 503)
    return CloudSituation(status, code, FOX, replies=replies, **options)


def _wasted(*replies: Reply, **options: Any) -> CloudSituation:
    """Return the situation of a call that may have cost something and brought no image."""
    return _answered("UPSTREAM_ERROR", *replies, is_final=True, **options)


SITUATIONS: dict[str, Situation] = {
    **REQUESTS,
    "a prompt that the cloud refuses": _answered("SAFETY_BLOCK", BLOCKED),
    "an image that the cloud refuses": _answered("SAFETY_BLOCK", made(reason="IMAGE_SAFETY")),
    "words in place of an image": _wasted(made({"text": "secret"})),
    "an answer without an image": _wasted(Reply(body=b"{}")),
    "an answer that can't be read": _wasted(Reply(body=b"<html>secret</html>")),
    "an image that can't be read": _wasted(made(image_part(picture()[:70]))),
    "an answer that breaks off": _wasted(Reply(body=b'{"a": [', lacks=900)),
    "a redirect": _wasted(Reply(302, headers={"Location": "/elsewhere"})),
    "no answer": _wasted(is_silent=True, gemini={"timeout_s": 0.5}),
    "a call that the cloud doesn't understand": _wasted(error_of(400, "INVALID_ARGUMENT")),
    "an outage": _answered("UPSTREAM_ERROR", OUTAGE, OUTAGE, OUTAGE, calls=3),
    "a cloud that can't be reached": _answered(
        "UPSTREAM_ERROR", calls=0, gemini={"base_url": "http://127.0.0.1:9"}
    ),
    "too many calls": _answered("OVERLOADED", BUSY, retry_after=[42]),
    "too many calls, says the body": _answered(
        "OVERLOADED", error_of(429, "RESOURCE_EXHAUSTED", RETRY_INFO), retry_after=[18]
    ),
    "too many calls, and nothing more": _answered("OVERLOADED", Reply(429), retry_after=[10]),
    "the time after too many calls": _answered(
        "OVERLOADED", BUSY, is_second=True, retry_after=range(1, 43)
    ),
    "as many images as may wait": _answered(
        "OVERLOADED", calls=0, company=8, gemini={"max_calls": 1}, retry_after=[80]
    ),
    "a service that stops": _answered("DRAINING", calls=0, is_draining=True),
    "a key that the cloud refuses": _answered(
        "MODEL_UNAVAILABLE", gemini={"api_key": SecretStr("another-key")}
    ),
    "a model that the cloud doesn't have": _answered(
        "MODEL_UNAVAILABLE", gemini={"model": "gemini-of-last-year"}
    ),
    "an account that isn't served": _answered(
        "MODEL_UNAVAILABLE", error_of(400, "FAILED_PRECONDITION")
    ),
    "a deadline before a call": CloudSituation(
        504, "DEADLINE_EXCEEDED", HURRIED, calls=0, company=1, gemini={"max_calls": 1}
    ),
    "a deadline that ends a call": CloudSituation(
        504, "DEADLINE_EXCEEDED", HURRIED, is_silent=True, is_final=True
    ),
    "a deadline that nobody chose": CloudSituation(
        504,
        "DEADLINE_EXCEEDED",
        FOX,
        replies=[OUTAGE],
        gemini={"timeout_s": 1.0, "retries": 1, "retry_pause_s": 60.0},  # 2 s in all
        is_final=True,
    ),
    "a cancelled job": CloudSituation(
        409, "CANCELLED", FOX, is_silent=True, is_cancelled=True, is_final=True
    ),
}


@asynccontextmanager
async def in_company(service: CloudService, count: int) -> AsyncIterator[None]:
    """Have a job of `count` images wait for the cloud, if any, for the duration of the block."""
    if not count:
        yield
        return
    service.gemini.may_answer.clear()
    body = {"prompt": "a harbour", "imageCount": count}
    waiting = asyncio.create_task(service.http.post("/generate", json=body))
    await until_async(lambda: len(service.gemini.calls) == 1)
    yield
    service.gemini.may_answer.set()
    assert (await waiting).status_code == 201


async def cancel(service: CloudService) -> None:
    """Cancel the job whose call is made."""
    await until_async(lambda: service.gemini.calls)
    (job,) = await until_async(lambda: service.ledger.created)
    await service.http.delete(f"/jobs/{job.id}")


async def refused_by(door: DoorAdapter, situation: Situation) -> Refusal:
    """Return how a door refuses in a situation, with a service of its own."""
    cloud = situation if isinstance(situation, CloudSituation) else None
    async with cloud_service(
        cloud.gemini if cloud else {}, situation.info, **OPEN, **situation.options
    ) as service:
        if cloud:
            service.gemini.replies = list(cloud.replies)
            service.cloud.is_draining = cloud.is_draining
            if cloud.is_silent:
                service.gemini.may_answer.clear()
        async with in_company(service, cloud.company if cloud else 0):
            before = len(service.gemini.calls)
            if situation.is_second:
                await door.send(service.http, situation)
            sending = asyncio.create_task(door.send(service.http, situation))
            if cloud and cloud.is_cancelled:
                await cancel(service)
            answer = await sending
            calls = len(service.gemini.calls) - before
    assert answer.headers["x-request-id"]
    assert not [text for text in ("secret", KEY, "another-key") if text in answer.text]
    if cloud or not situation.is_second:
        assert calls == (cloud.calls if cloud else 0), answer.text
    return door.read(answer)


@pytest.mark.parametrize("name", SITUATIONS)
async def test_every_door_refuses_alike_where_a_cloud_makes_the_images(name: str) -> None:
    situation = SITUATIONS[name]
    doors = [door for door in DOORS.values() if name not in door.skipped]
    refusals = await asyncio.gather(*(refused_by(door, situation) for door in doors))
    for door, refusal in zip(doors, refusals, strict=True):
        assert (refusal.status, refusal.code) == (situation.status, situation.code), door.path
        assert refusal.parts == door.parts
        refusal.check_consistency()
    if isinstance(situation, CloudSituation):
        assert len({refusal.message for refusal in refusals}) == 1
        assert {refusal.is_final for refusal in refusals} == {situation.is_final}
        if situation.retry_after:
            assert all(refusal.retry_after in situation.retry_after for refusal in refusals)
    if name != "the time after too many calls":  # a second may pass between two doors
        check_alike(refusals)


@pytest.mark.parametrize("name", WITH_KEYS)
async def test_one_key_is_one_call_and_with_another_body_a_conflict(name: str) -> None:
    door = DOORS[name]
    first, other = (
        Situation(422, "IDEMPOTENCY_CONFLICT", fields, headers={"Idempotency-Key": "k"})
        for fields in (FOX, {**FOX, "prompt": "a wolf"})
    )
    async with cloud_service(**OPEN) as service:
        answers = [await door.send(service.http, first) for _ in range(2)]
        refusal = door.read(await door.send(service.http, other))
        assert len(service.gemini.calls) == 1
    assert door.succeeded(answers[0]), answers[0].text
    assert answers[0].content == answers[1].content
    assert (refusal.status, refusal.code) == (other.status, other.code)


async def test_a_request_with_equal_meaning_is_the_same_call_through_every_door() -> None:
    wide = Situation(200, "", {**FOX, "size": (1216, 832), "seed": 7, "steps": 12})
    base = picture(size=(512, 640))
    text = b64encode(base).decode()
    edits: dict[str, dict[str, Any]] = {
        "/refine": {"json": {"prompt": "at dawn", "images": [text], "imageCount": 1}},
        "/v1/images/edits": {
            "data": {"prompt": "at dawn"},
            "files": {"image": ("a.png", base, "image/png")},
        },
        "/sdapi/v1/img2img": {"json": {"prompt": "at dawn", "init_images": [text]}},
    }
    async with cloud_service(**OPEN) as service:
        for door in DOORS.values():
            assert door.succeeded(await door.send(service.http, wide))
        generated = [call.body for call in service.gemini.calls]
        service.gemini.calls.clear()
        for path, sent in edits.items():
            assert (await service.http.post(path, **sent)).is_success
        edited = [call.body for call in service.gemini.calls]
    assert len(generated) == len(DOORS)
    assert all(body == generated[0] for body in generated)
    assert generated[0]["generationConfig"]["imageConfig"]["aspectRatio"] == "3:2"
    assert len(edited) == len(edits)
    assert all(body == edited[0] for body in edited)


def test_a_door_skips_situations_that_there_are() -> None:
    known = SITUATIONS.keys() | LOCAL.keys() | {CONFLICT}
    assert all(door.skipped.keys() <= known for door in DOORS.values())
    assert len(SITUATIONS) >= 30
