"""What a meter records of each HTTP request: duration and status by route, errors by code."""

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.service.metrics import HTTP_ERRORS, HTTP_REQUEST_DURATION, InMemoryMeter
from serve_app.ingress.request_record import RequestRecordMiddleware
from tests.support.api import Client

BODY = {"prompt": "a fox", "imageCount": 1}


@pytest.mark.parametrize(
    ("method", "path", "body", "route", "status"),
    [
        ("POST", "/generate", BODY, "/generate", "201"),
        ("POST", "/generate", {}, "/generate", "400"),
        ("GET", "/jobs/1234", None, "/jobs/{id}", "404"),
        ("POST", "/v1/images/generations", {}, "/v1/images/generations", "400"),
        ("GET", "/nothing", None, "unmatched", "404"),
        ("PUT", "/generate", None, "/generate", "405"),
    ],
)
async def test_a_request_is_recorded_by_the_template_of_its_route(
    client: Client, method: str, path: str, body: object, route: str, status: str
) -> None:
    meter = InMemoryMeter()
    await client(meter=meter).request(method, path, json=body)
    labels = {"route": route, "method": method, "status": status}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1


async def test_a_request_refused_before_its_route_has_the_route_s_template(client: Client) -> None:
    meter = InMemoryMeter()
    await client(meter=meter, peer="192.0.2.7").get("/jobs/1234")
    labels = {"route": "/jobs/{id}", "method": "GET", "status": "401"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1


async def test_an_unknown_method_is_no_label_of_its_own(client: Client) -> None:
    meter = InMemoryMeter()
    await client(meter=meter).request("BREW", "/nothing")
    labels = {"route": "unmatched", "method": "other", "status": "404"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1


async def test_an_error_is_recorded_with_its_code_and_status(client: Client) -> None:
    meter = InMemoryMeter()
    await client(meter=meter).post("/generate", json={"prompt": ""})
    assert meter.value(HTTP_ERRORS, code="VALIDATION_ERROR", status="400") == 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def call(app: ASGIApp, kind: str = "http") -> None:
    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        pass

    await app({"type": kind, "method": "GET", "path": "/", "state": {}}, receive, send)


async def test_a_request_lasts_until_its_response_is_sent() -> None:
    clock, meter = Clock(), InMemoryMeter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now = 2.5
        await send({"type": "http.response.start", "status": 200})
        clock.now = 4.0
        await send({"type": "http.response.body"})

    await call(RequestRecordMiddleware(app, meter, clock=clock))
    labels = {"route": "unmatched", "method": "GET", "status": "200"}
    assert meter.value(HTTP_REQUEST_DURATION, **labels) == 4.0


async def test_a_request_without_a_response_has_the_status_of_a_client_that_left() -> None:
    meter = InMemoryMeter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await call(RequestRecordMiddleware(app, meter))
    labels = {"route": "unmatched", "method": "GET", "status": "499"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1


async def test_what_is_no_request_is_not_recorded() -> None:
    meter = InMemoryMeter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    await call(RequestRecordMiddleware(app, meter), "lifespan")
    labels = {"route": "unmatched", "method": "GET", "status": "499"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 0


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("HEAD", "/jobs/1", "/jobs/{id}"),
        ("PUT", "/jobs/1", "/jobs/{id}"),
        ("GET", "/docs", "/docs"),
        ("HEAD", "/static/docs.js", "/static/{path:path}"),
    ],
)
async def test_a_request_that_was_refused_has_the_template_of_its_path(
    client: Client, method: str, path: str, route: str
) -> None:
    meter = InMemoryMeter()
    await client(meter=meter).request(method, path, headers={"Host": "evil.example"})
    labels = {"route": route, "method": method, "status": "403"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1
