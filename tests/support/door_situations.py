"""Situations in which every door must refuse a request alike: one table, sent through each.

What a door's own form of a request or a refusal is stands in `doors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core import errors
from serve_app.core.replica_errors import ReplicasExhausted
from serve_app.core.service.convictions import image_kills_replica
from serve_app.core.service.job_errors import JobCancelled
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.ingress.access import digests
from tests.support.api import POLICY
from tests.support.ledgers import AwayLedger

KEYED = replace(POLICY, keys=digests(["a-key"]))
SMALL = replace(POLICY, max_body_bytes=100)
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Situation:
    """What is sent to a door, to which service, and how it must refuse."""

    status: int
    code: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # by their native names
    content: bytes | None = None  # in place of a body of fields
    headers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the client
    info: Mapping[str, Any] = field(default_factory=dict)  # what the service's is changed by
    method: str = "POST"
    below: str = ""  # behind the path
    is_second: bool = False  # whether the same request was sent before


CONFLICT = "a key with another body"  # the name of a situation of two requests
PLAIN = Situation(200, "")  # in which nothing is wrong


@dataclass(frozen=True)
class LocalSituation(Situation):
    """A situation of the service's own replicas."""

    refusal: Exception | None = None  # when the job comes
    failure: Exception | None = None  # of the first image


def _of_job(failure: Exception, status: int, code: str) -> LocalSituation:
    return LocalSituation(status, code, failure=failure)


def _at_once(refusal: Exception, status: int, code: str) -> LocalSituation:
    return LocalSituation(status, code, refusal=refusal)


REQUESTS: dict[str, Situation] = {  # that are refused whatever makes the images
    "no prompt": Situation(400, "VALIDATION_ERROR", {"prompt": " "}),
    "too long a prompt": Situation(400, "VALIDATION_ERROR", {"prompt": "a" * 5000}),
    "too many steps": Situation(400, "VALIDATION_ERROR", {"steps": 151}),
    "too much guidance": Situation(400, "VALIDATION_ERROR", {"guidance": 21}),
    "too large a seed": Situation(400, "VALIDATION_ERROR", {"seed": 2**32}),
    "too many images": Situation(400, "VALIDATION_ERROR", {"count": 11}),
    "no image": Situation(400, "VALIDATION_ERROR", {"count": 0}),
    "too large a size": Situation(400, "VALIDATION_ERROR", {"size": (100_000, 64)}),
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
    "terms": Situation(403, "TERMS_NOT_ACCEPTED", info={"terms_required": True}),
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
    "no ledger for a key": Situation(
        503,
        "LEDGER_UNAVAILABLE",
        headers={"Idempotency-Key": "k"},
        options={"ledger": AwayLedger()},
    ),
    "a wrong method": Situation(405, "METHOD_NOT_ALLOWED", method="DELETE"),
    "no such route": Situation(404, "NOT_FOUND", below="/nothing"),
}

LOCAL: dict[str, LocalSituation] = {
    "a full queue": _at_once(errors.Overloaded("full", retry_after=7), 503, "OVERLOADED"),
    "a model that loads": _at_once(errors.Loading("loading"), 503, "LOADING"),
    "a service that stops": _at_once(errors.Draining("stopping"), 503, "DRAINING"),
    "a deadline that can't be met": _at_once(
        errors.DeadlineImpossible("too late"), 504, "DEADLINE_EXCEEDED"
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
}
