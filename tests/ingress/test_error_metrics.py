"""Every error response is counted once, by its code, whichever part refused the request."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.errors import DeadlineExceeded, Overloaded
from serve_app.core.service.metrics import HTTP_ERRORS, InMemoryMeter
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor

BODY = {"prompt": "a fox", "imageCount": 1}
PREFLIGHT = {"Origin": "http://localhost:5173", "Access-Control-Request-Method": "TRACE"}


def failing(error: Exception) -> Callable[[], FakeConductor]:
    return lambda: FailingConductor(error, at=0)


@pytest.mark.parametrize(
    ("conductor", "method", "route", "options", "code"),
    [
        (FakeConductor, "POST", "/generate", {"json": {"prompt": ""}}, "VALIDATION_ERROR"),
        (FakeConductor, "POST", "/generate", {"content": b"{}"}, "UNSUPPORTED_MEDIA_TYPE"),
        (FakeConductor, "POST", "/v1/images/generations", {"json": {}}, "VALIDATION_ERROR"),
        (FakeConductor, "GET", "/jobs/unknown", {}, "NOT_FOUND"),
        (FakeConductor, "GET", "/nothing", {}, "NOT_FOUND"),
        (
            FakeConductor,
            "GET",
            "/health",
            {"headers": {"Origin": "http://a.b"}},
            "FORBIDDEN_ORIGIN",
        ),
        (FakeConductor, "GET", "/v1/models", {"headers": {"Host": "a.b"}}, "FORBIDDEN_HOST"),
        (FakeConductor, "OPTIONS", "/generate", {"headers": PREFLIGHT}, "VALIDATION_ERROR"),
        (failing(Overloaded("full")), "POST", "/generate", {"json": BODY}, "OVERLOADED"),
        (failing(DeadlineExceeded("")), "POST", "/generate", {"json": BODY}, "DEADLINE_EXCEEDED"),
        (failing(KeyError("slip")), "POST", "/generate", {"json": BODY}, "INTERNAL"),
    ],
)
async def test_a_refused_request_is_counted_by_its_code(
    client: Client,
    conductor: Callable[[], FakeConductor],
    method: str,
    route: str,
    options: dict[str, Any],
    code: str,
) -> None:
    meter = InMemoryMeter()
    answer = await client(conductor(), meter=meter).request(method, route, **options)
    assert answer.status_code >= 400
    assert meter.value(HTTP_ERRORS, code=code, status=str(answer.status_code)) == 1


async def test_what_is_answered_is_no_refusal(client: Client) -> None:
    meter = InMemoryMeter()
    caller = client(meter=meter)
    assert (await caller.post("/generate", json=BODY)).status_code == 201
    assert (await caller.get("/health")).status_code == 200
    missing = client(meter=meter, info=replace(INFO, terms_required=True))
    assert (await missing.post("/generate", json=BODY)).status_code == 403
    assert meter.value(HTTP_ERRORS, code="TERMS_NOT_ACCEPTED", status="403") == 1
    assert not meter.value(HTTP_ERRORS, code="INTERNAL", status="500")
