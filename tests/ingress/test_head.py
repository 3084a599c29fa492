"""HEAD on every route, and what a wrong method learns from Allow."""

from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.core.service.metrics import HTTP_REQUEST_DURATION, InMemoryMeter
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.a1111.catalog import EMPTY_LISTS
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.middleware import HeadMiddleware
from tests.support.api import Client, make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving
from tests.support.routes import every_route

ORIGIN = {"Origin": "http://localhost:5173"}
CHANGING = {"x-request-id", "date", "server-timing"}
PATHS = [path for method, path in every_route() if method == "GET"]


def test_the_routes_that_answer_get_are_known() -> None:
    jobs = {"/jobs", "/jobs/x", "/jobs/x/events", "/images/x/0.png"}
    ours = {"/health", "/livez", "/licenses", "/v1/models", "/v1/models/gpt-image-1"} | jobs
    names = [
        *("options", "sd-models", "samplers", "schedulers", "upscalers", "loras", "embeddings"),
        *("scripts", "cmd-flags", "memory", "progress", *EMPTY_LISTS),
    ]
    ours |= {f"/sdapi/v1/{name}" for name in names}
    assert set(PATHS) == ours | {"/", "/docs", "/openapi.json", "/static/docs.js"}


@pytest.mark.parametrize("path", PATHS)
async def test_head_answers_as_get_does_without_a_body(client: Client, path: str) -> None:
    http = client()
    got, head = await http.get(path, headers=ORIGIN), await http.head(path, headers=ORIGIN)
    assert head.status_code == got.status_code
    assert not head.content
    kept = [{n: v for n, v in r.headers.items() if n not in CHANGING} for r in (got, head)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("path", ["/health", "/livez", "/licenses"])
async def test_what_needs_no_key_with_get_needs_none_with_head(client: Client, path: str) -> None:
    http = client(policy=AccessPolicy(keys=digests(["key"])))
    assert (await http.head(path)).status_code == 200
    assert (await http.head("/v1/models")).status_code == 401


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_real_server_sends_the_same_over_one_connection(parser: str) -> None:
    with (
        serving(make_api(FakeConductor(), Ledger(None)), parser) as address,
        httpx.Client(base_url=address) as http,
    ):
        got, head = http.get("/health"), http.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
        assert http.get("/livez").json() == {"status": "alive"}  # nothing is left of a body


async def test_metrics_know_head_from_get(client: Client) -> None:
    meter = InMemoryMeter()
    await client(meter=meter).head("/livez")
    labels = {"route": "/livez", "method": "HEAD", "status": "200"}
    assert meter.times(HTTP_REQUEST_DURATION, **labels) == 1


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("HEAD", "/generate", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/jobs/x", "DELETE, GET, HEAD"),
        ("DELETE", "/licenses", "GET, HEAD, POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_learns_all_the_right_ones(
    client: Client, method: str, path: str, allowed: str
) -> None:
    answer = await client().request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_a_page_may_send_head(client: Client) -> None:
    preflight = ORIGIN | {"Access-Control-Request-Method": "HEAD"}
    answer = await client().options("/health", headers=preflight)
    assert answer.status_code == 200
    assert "HEAD" in answer.headers["access-control-allow-methods"]


async def test_head_drops_every_piece_of_a_streamed_body() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece, more in ((b"a", True), (b"b", False)):
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "HEAD"}
    await HeadMiddleware(app)(scope, receive, send)
    assert [message.get("body") for message in sent] == [None, b"", b""]
    assert scope["method"] == "HEAD"
