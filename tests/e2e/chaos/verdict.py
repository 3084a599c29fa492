"""`Verdict`: what an answer is, for every request that a test sends."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve_app.testing.faulty_service import ORIGIN
from tests.e2e.chaos.bodies import OPENAI, expected_pixels, pixels_of
from tests.e2e.chaos.load import Answer

_RETRY_LATER = (429, 503)  # which must say when


class Kind(StrEnum):
    """The classes of answers."""

    MADE = "made"  # 201, or 200 by the OpenAI route, and the right pixels
    WRONG = "wrong picture"
    ERROR = "named error"  # in JSON, with CORS, and Retry-After where it is due
    LEFT = "client left"  # on purpose
    OTHER = "anything else"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The class of an answer, and what exactly it was."""

    kind: Kind
    detail: str  # such as "503 OVERLOADED"

    def __str__(self) -> str:
        """Return the kind alone where it says all."""
        return self.kind.value if self.kind in (Kind.MADE, Kind.LEFT) else self.detail


def judge(answer: Answer, *, compares: bool = True) -> Verdict:
    """Return the class of an answer to a body of `bodies`.

    Without `compares` any picture is right: for other bodies, and for services that don't sleep.
    """
    if answer.left:
        return Verdict(Kind.LEFT, "")
    if answer.status == 0:
        return Verdict(Kind.OTHER, answer.failure)
    try:
        content = json.loads(answer.body)
    except ValueError:
        kind = answer.headers.get("content-type", "no type")
        return Verdict(Kind.OTHER, f"{answer.status} in {kind}")
    if answer.status in (200, 201):
        pictures = [pixels_of(png) for png in _pngs(answer.call.route, content)]
        if not compares or pictures == expected_pixels(answer.call.body, answer.call.route):
            return Verdict(Kind.MADE, str(answer.status))
        return Verdict(Kind.WRONG, f"{answer.status} with a wrong picture")
    return _judge_error(answer, content)


def _pngs(route: str, content: Any) -> list[str]:
    if route == OPENAI:
        return [image["b64_json"] for image in content["data"]]
    return list(content["images"])


def _judge_error(answer: Answer, content: object) -> Verdict:
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not {"code", "message"} <= set(error):
        return Verdict(Kind.OTHER, f"{answer.status} without a named error")
    detail = f"{answer.status} {error['code']}"
    if answer.headers.get("access-control-allow-origin") != ORIGIN:
        return Verdict(Kind.OTHER, f"{detail} without CORS")
    is_final = answer.headers.get("x-should-retry") == "false"
    if is_final and "retry-after" in answer.headers:
        return Verdict(Kind.OTHER, f"{detail} with Retry-After, although a retry can't help")
    has_time = answer.headers.get("retry-after", "").isdigit()
    if answer.status in _RETRY_LATER and not (has_time or is_final):
        return Verdict(Kind.OTHER, f"{detail} without Retry-After")
    return Verdict(Kind.ERROR, detail)


def count(answers: Iterable[Answer]) -> Counter[str]:
    """Return how often each class occurs; errors by status and code."""
    return Counter(str(judge(answer)) for answer in answers)


def tally(answers: Iterable[Answer]) -> str:
    """Return how often each class occurs as text, the most frequent first."""
    counts = count(answers).most_common()
    return ", ".join(f"{number} x {name}" for name, number in counts) or "no answers"


def by_kind(answers: Iterable[Answer], kind: Kind) -> list[Answer]:
    """Return the answers of one class."""
    return [answer for answer in answers if judge(answer).kind is kind]


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
