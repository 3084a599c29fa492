import logging
from typing import Any

import pytest

from tests.ingress.conducting import Painter
from tests.ingress.conftest import Client

ORIGIN = {"Origin": "http://localhost:5173"}
JSON = {"Content-Type": "application/json"}


class Speechless(Painter):
    """Fails, and can't even say what it owes: no error handler gets through."""

    async def make(self, *asked: object) -> bytes:
        raise ValueError("/secret/path")

    def owed_seconds(self) -> float:
        raise ZeroDivisionError("/secret/rate")


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://evil.example"])
async def test_a_preflight_too_has_a_request_id(client: Client, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = await client().options("/generate", headers=asked | {"X-Request-Id": "pre-1"})
    assert answer.headers["x-request-id"] == "pre-1"


@pytest.mark.parametrize(
    ("method", "route", "asked", "status"),
    [
        ("POST", "/generate", {"content": b"{}", "headers": JSON}, 400),
        ("GET", "/nothing", {}, 404),
        ("GET", "/generate", {}, 405),
        ("POST", "/generate", {"content": b"a" * (33 * 2**20), "headers": JSON}, 413),
        ("POST", "/generate", {"content": b"a"}, 415),
    ],
)
async def test_a_browser_can_read_every_refusal(
    client: Client, method: str, route: str, asked: dict[str, Any], status: int
) -> None:
    headers = asked.get("headers", {}) | ORIGIN
    answer = await client().request(method, route, **asked | {"headers": headers})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert answer.json()["error"]["requestId"] == answer.headers["x-request-id"]


async def test_even_when_telling_of_a_fault_fails_the_caller_gets_the_one_shape(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        answer = await client(Speechless()).post("/generate", json={"prompt": "a"}, headers=ORIGIN)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "INTERNAL"
    assert error["requestId"] == answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert "secret" not in answer.text


async def test_a_length_that_is_no_sensible_number_is_over_the_limit(client: Client) -> None:
    headers = JSON | {"Content-Length": "9" * 5000}
    answer = await client().post("/generate", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
