"""Refusals and answers that are alike at every door: one table of situations, each through all.

A door has its own wire form and its own error shape. What is refused, with which status, code and
headers, and which pixels come, is the same.
"""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.core import errors
from serve_app.core.replica_errors import ReplicasExhausted
from serve_app.core.service.convictions import image_kills_replica
from serve_app.core.service.job_errors import JobCancelled
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.ingress.access import digests
from tests.support.api import ORIGIN, POLICY, Client
from tests.support.demo_api import demo_client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor
from tests.support.ledgers import AwayLedger

KEYED = replace(POLICY, keys=digests(["a-key"]))
SMALL = replace(POLICY, max_body_bytes=100)
KEY = {"Authorization": "Bearer a-key"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class DoorCase:
    """A door's route for images from a prompt, and what it calls the fields."""

    path: str
    names: dict[str, str]  # of the fields, by the native ones
    status: int  # of a success
    code: Callable[[dict[str, Any]], str]

    def body(self, **fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": "a fox"}
        for name, value in fields.items():
            wire = self.names.get(name, name)
            target = body
            *parents, last = wire.split(".")
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
        return body


DOORS = {
    "native": DoorCase(
        "/generate",
        {"guidance": "guidanceScale", "count": "imageCount"},
        201,
        lambda body: str(body["error"]["code"]),
    ),
    "openai": DoorCase(
        "/v1/images/generations",
        {"guidance": "guidance_scale", "count": "n", "steps": "num_inference_steps"},
        200,
        lambda body: str(body["error"]["code"]).upper(),
    ),
    "a1111": DoorCase(
        "/sdapi/v1/txt2img",
        {
            "guidance": "cfg_scale",
            "count": "batch_size",
            "model": "override_settings.sd_model_checkpoint",
            "sampler": "sampler_name",
        },
        200,
        lambda body: str(body["error"]),
    ),
}


@dataclass(frozen=True)
class Situation:
    """What is sent to a door, in which state of the service, and how it must refuse."""

    status: int
    code: str
    fields: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None  # in place of a body of fields
    headers: dict[str, str] = field(default_factory=dict)
    refusal: Exception | None = None  # of the maker, when the job comes
    failure: Exception | None = None  # of the first image
    options: dict[str, Any] = field(default_factory=dict)  # of the client
    method: str = "POST"
    below: str = ""  # behind the path
    is_second: bool = False  # whether the same request was sent before


def _of_job(failure: Exception, status: int, code: str) -> Situation:
    return Situation(status, code, failure=failure)


SITUATIONS = {
    "no prompt": Situation(400, "VALIDATION_ERROR", {"prompt": " "}),
    "too long a prompt": Situation(400, "VALIDATION_ERROR", {"prompt": "a" * 5000}),
    "too many steps": Situation(400, "VALIDATION_ERROR", {"steps": 151}),
    "too much guidance": Situation(400, "VALIDATION_ERROR", {"guidance": 21}),
    "too large a seed": Situation(400, "VALIDATION_ERROR", {"seed": 2**32}),
    "too many images": Situation(400, "VALIDATION_ERROR", {"count": 11}),
    "no image": Situation(400, "VALIDATION_ERROR", {"count": 0}),
    "an unknown sampler": Situation(400, "VALIDATION_ERROR", {"sampler": "PLMS"}),
    "an unknown model": Situation(404, "MODEL_NOT_FOUND", {"model": "another"}),
    "a list for a number": Situation(400, "VALIDATION_ERROR", {"steps": [1]}),
    "not JSON": Situation(400, "INVALID_JSON", content=b'{"prompt":', headers=JSON),
    "NaN": Situation(400, "INVALID_JSON", content=b'{"steps": NaN}', headers=JSON),
    "no body": Situation(400, "VALIDATION_ERROR", content=b"", headers=JSON),
    "a form": Situation(
        415, "UNSUPPORTED_MEDIA_TYPE", content=b"prompt=a", headers={"Content-Type": "text/plain"}
    ),
    "too large a body": Situation(
        413, "PAYLOAD_TOO_LARGE", {"prompt": "a" * 200}, options={"policy": SMALL}
    ),
    "no key": Situation(401, "UNAUTHORIZED", options={"policy": KEYED}),
    "a wrong key": Situation(
        401,
        "UNAUTHORIZED",
        headers={"Authorization": "Bearer another"},
        options={"policy": KEYED},
    ),
    "another machine without keys": Situation(401, "UNAUTHORIZED", options={"peer": "203.0.113.7"}),
    "another host": Situation(403, "FORBIDDEN_HOST", headers={"Host": "evil.example"}),
    "another origin": Situation(
        403, "FORBIDDEN_ORIGIN", headers={"Origin": "https://evil.example"}
    ),
    "terms": Situation(
        403, "TERMS_NOT_ACCEPTED", options={"info": replace(INFO, terms_required=True)}
    ),
    "a forbidden word": Situation(
        422, "SAFETY_BLOCK", options={"prompt_filter": WordList(["fox"])}
    ),
    "a rate limit": Situation(
        429,
        "RATE_LIMITED",
        {"count": 1},
        options={"rate_limit": RateLimit(rate=0.01, burst=1)},
        is_second=True,
    ),
    "a full queue": Situation(503, "OVERLOADED", refusal=errors.Overloaded("full", retry_after=7)),
    "a model that loads": Situation(503, "LOADING", refusal=errors.Loading("loading")),
    "a service that stops": Situation(503, "DRAINING", refusal=errors.Draining("stopping")),
    "a deadline that can't be met": Situation(
        504, "DEADLINE_EXCEEDED", refusal=errors.DeadlineImpossible("too late")
    ),
    "a deadline that passes": _of_job(errors.DeadlineExceeded("late"), 504, "DEADLINE_EXCEEDED"),
    "no memory": _of_job(errors.OutOfMemory("no room"), 503, "OUT_OF_MEMORY"),
    "an image larger than the device": _of_job(
        errors.ImageTooLarge("too large"), 422, "IMAGE_TOO_LARGE_FOR_GPU"
    ),
    "lost replicas": _of_job(ReplicasExhausted("lost"), 503, "REPLICA_LOST"),
    "an image that kills": _of_job(image_kills_replica(), 422, "IMAGE_KILLS_REPLICA"),
    "a numeric fault": _of_job(errors.NumericFault("NaN"), 500, "NUMERIC_FAULT"),
    "a model that is broken": _of_job(errors.ModelUnavailable("no"), 503, "MODEL_UNAVAILABLE"),
    "a cancelled job": _of_job(JobCancelled("cancelled"), 409, "CANCELLED"),
    "a fault of our own": _of_job(ZeroDivisionError("secret"), 500, "INTERNAL"),
    "no ledger for a key": Situation(
        503,
        "LEDGER_UNAVAILABLE",
        headers={"Idempotency-Key": "k"},
        options={"ledger": AwayLedger()},
    ),
    "a wrong method": Situation(405, "METHOD_NOT_ALLOWED", method="DELETE"),
    "no such route": Situation(404, "NOT_FOUND", below="/nothing"),
}
SAME_HEADERS = ("retry-after", "x-should-retry", "www-authenticate", "access-control-allow-origin")


async def refusal_of(client: Client, door: DoorCase, situation: Situation) -> httpx.Response:
    maker = FakeConductor()
    if situation.failure is not None:
        maker = FailingConductor(situation.failure, at=0)
    maker.refusal = situation.refusal
    caller = client(maker, **situation.options)
    content: dict[str, Any] = {"json": door.body(**situation.fields)}
    if situation.content is not None:
        content = {"content": situation.content}
    if situation.method != "POST":
        content = {}
    headers = {"Origin": ORIGIN, **situation.headers}
    path = door.path + situation.below
    if situation.is_second:
        await caller.request(situation.method, path, headers=headers, **content)
    return await caller.request(situation.method, path, headers=headers, **content)


@pytest.mark.parametrize("name", SITUATIONS)
async def test_every_door_refuses_alike(client: Client, name: str) -> None:
    situation = SITUATIONS[name]
    headers = []
    for door_name, door in DOORS.items():
        answer = await refusal_of(client, door, situation)
        found = (answer.status_code, door.code(answer.json()))
        assert found == (situation.status, situation.code), (door_name, answer.text)
        assert answer.headers["x-request-id"]
        assert "secret" not in answer.text
        headers.append({name: answer.headers.get(name) for name in SAME_HEADERS})
    assert headers[0] == headers[1] == headers[2]


@pytest.mark.parametrize("name", DOORS)
async def test_one_key_with_another_body_is_a_conflict_at_every_door(
    client: Client, name: str
) -> None:
    door, caller = DOORS[name], client(FakeConductor())
    key = {"Idempotency-Key": "k"}
    first = await caller.post(door.path, json=door.body(seed=1), headers=key)
    assert first.status_code == door.status
    again = await caller.post(door.path, json=door.body(seed=1), headers=key)
    assert again.content == first.content
    other = await caller.post(door.path, json=door.body(seed=2), headers=key)
    assert (other.status_code, door.code(other.json())) == (422, "IDEMPOTENCY_CONFLICT")


@pytest.mark.parametrize("name", DOORS)
async def test_without_the_ledger_a_picture_comes_through_every_door(
    client: Client, name: str
) -> None:
    away: Any = AwayLedger()
    answer = await client(ledger=away).post(DOORS[name].path, json=DOORS[name].body())
    assert answer.status_code == DOORS[name].status, answer.text


async def test_a_picture_with_equal_meaning_has_the_same_pixels_through_every_door() -> None:
    prompt = "a large yellow star on a black background"
    bodies = {
        "/generate": {
            "prompt": prompt,
            "negativePrompt": "a blue circle",
            "seed": 7,
            "steps": 12,
            "guidanceScale": 5,
            "sampler": "dpmpp_2m_karras",
            "imageCount": 1,
            "width": 128,
            "height": 96,
        },
        "/v1/images/generations": {
            "prompt": prompt,
            "negative_prompt": "a blue circle",
            "seed": 7,
            "num_inference_steps": 12,
            "guidance_scale": 5,
            "sampler": "dpmpp_2m_karras",
            "size": "128x96",
        },
        "/sdapi/v1/txt2img": {
            "prompt": prompt,
            "negative_prompt": "a blue circle",
            "seed": 7,
            "steps": 12,
            "cfg_scale": 5,
            "sampler_name": "DPM++ 2M",
            "scheduler": "Karras",
            "width": 128,
            "height": 96,
        },
    }
    async with demo_client() as http:
        answers = await asyncio.gather(
            *(http.post(path, json=body) for path, body in bodies.items())
        )
        images = [_first_image(answer.json()) for answer in answers]
        refined = await asyncio.gather(
            *(
                http.post(path, json=body)
                for path, body in {
                    "/refine": {
                        "images": [_plain_png(images[0])],
                        "prompt": "a red heart",
                        "strength": 0.5,
                        "seed": 3,
                        "imageCount": 1,
                    },
                    "/sdapi/v1/img2img": {
                        "init_images": [_plain_png(images[0])],
                        "prompt": "a red heart",
                        "denoising_strength": 0.5,
                        "seed": 3,
                    },
                }.items()
            )
        )
        changed = [_first_image(answer.json()) for answer in refined]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert np.array_equal(changed[0], changed[1])
    assert not np.array_equal(images[0], changed[0])


def _first_image(body: dict[str, Any]) -> np.ndarray[Any, Any]:
    text = body["data"][0]["b64_json"] if "data" in body else body["images"][0]
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def _plain_png(pixels: np.ndarray[Any, Any]) -> str:
    """Return an image without its record, which one door would add to its prompt."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_there_are_more_than_thirty_situations() -> None:
    assert len(SITUATIONS) >= 30
