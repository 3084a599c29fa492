import asyncio
import logging
import socket
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client, make_api
from tests.support.asgi_stream import exchange
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.http_server import serving
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

ORIGIN = {"Origin": "http://localhost:5173"}
JSON = {"Content-Type": "application/json"}


class Speechless(FakeConductor):
    """Fails, and can't even say what it owes: no error handler gets through."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        raise ValueError("/secret/path")

    def owed_seconds(self) -> float:
        raise ZeroDivisionError("/secret/rate")


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://evil.example"])
async def test_a_preflight_too_has_a_request_id(client: Client, origin: str) -> None:
    options = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = await client().options("/generate", headers=options | {"X-Request-Id": "pre-1"})
    assert answer.headers["x-request-id"] == "pre-1"


@pytest.mark.parametrize(
    ("method", "route", "options", "status"),
    [
        ("POST", "/generate", {"content": b"{}", "headers": JSON}, 400),
        ("GET", "/nothing", {}, 404),
        ("GET", "/generate", {}, 405),
        ("POST", "/generate", {"content": b"a" * (33 * 2**20), "headers": JSON}, 413),
        ("POST", "/generate", {"content": b"a"}, 415),
    ],
)
async def test_a_browser_can_read_every_refusal(
    client: Client, method: str, route: str, options: dict[str, Any], status: int
) -> None:
    headers = options.get("headers", {}) | ORIGIN
    answer = await client().request(method, route, **options | {"headers": headers})
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


async def test_under_a_prefix_every_address_is_what_it_is_without(conductor: FakeConductor) -> None:
    """As Serve has it with `route_prefix: /aura`: the path keeps it, root_path names it."""
    policy = AccessPolicy(keys=digests(["key"]))
    api = make_api(conductor, Ledger(None), policy=policy)
    transport = httpx.ASGITransport(app=api, root_path="/aura", client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
        assert (await client.get("/aura/health")).status_code == 200
        host = await client.get("/aura/v1/models", headers={"Authorization": "Bearer key"})
        assert set(host.json()["error"]) == {"message", "type", "param", "code"}
        assert host.status_code == 403


async def test_all_bodies_together_take_a_bounded_room(conductor: FakeConductor) -> None:
    """A caller sends all but the last byte of twenty bodies at the limit, and then the rest."""
    limit, callers = 2**20, 20
    policy = AccessPolicy(max_body_bytes=limit, max_open_body_bytes=16 * limit)
    go = asyncio.Event()
    waiting: list[None] = []

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt": "' + b"a" * (limit - 100)
        waiting.append(None)
        await go.wait()
        yield b'"}'

    transport = httpx.ASGITransport(
        app=make_api(conductor, Ledger(None), policy=policy), client=("127.0.0.1", 1)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        requests = [
            asyncio.ensure_future(client.post("/generate", content=body(), headers=JSON))
            for _ in range(callers)
        ]
        await until_async(lambda: len(waiting) + sum(r.done() for r in requests) == callers)
        small = await client.post("/generate", json={"prompt": "a"})
        assert small.status_code == 201  # there is always room for one
        go.set()
        answers = await asyncio.gather(*requests)
        codes = Counter(answer.json()["error"]["code"] for answer in answers)
        assert codes == {"VALIDATION_ERROR": 12, "OVERLOADED": 8}  # a quarter is for others
        assert all("retry-after" in a.headers for a in answers if a.status_code == 503)
        assert (await client.post("/generate", json={"prompt": "a"})).status_code == 201


async def test_a_body_that_announces_more_than_there_is_room_for_is_not_read(
    conductor: FakeConductor,
) -> None:
    limit = 2**20
    policy = AccessPolicy(max_body_bytes=limit, max_open_body_bytes=limit)
    go, sent = asyncio.Event(), asyncio.Event()
    pieces: list[bytes] = []  # that were read of the second body

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt": "' + b"a" * (limit // 2)
        sent.set()
        await go.wait()
        yield b'"}'

    async def unread() -> AsyncIterator[bytes]:
        for piece in [b'{"prompt": "a"}']:
            pieces.append(piece)
            yield piece

    api = make_api(conductor, Ledger(None), policy=policy)
    transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        first = asyncio.ensure_future(client.post("/generate", content=body(), headers=JSON))
        await sent.wait()
        headers = JSON | {"Content-Length": str(limit)}
        refused = await client.post("/generate", content=unread(), headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "13")
        assert refused.json()["error"]["code"] == "OVERLOADED"
        assert not pieces
        go.set()
        assert (await first).status_code == 400


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/generate", "localhost", b"413"),
        ("/generate", "evil.example", b"403"),
        ("/nothing", "localhost", b"404"),
    ],
)
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_who_sends_a_large_body_to_its_end_gets_the_answer_and_no_reset(
    conductor: FakeConductor, parser: str, path: str, host: str, status: bytes
) -> None:
    """Well over what the kernel holds for both sides, so that it must really be read."""
    limit = 2**24
    length = limit + 2**23 if status == b"413" else limit
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    api = make_api(conductor, Ledger(None), policy=AccessPolicy(max_body_bytes=limit))
    with serving(api, parser) as address:
        where = ("127.0.0.1", int(address.rpartition(":")[2]))
        with socket.create_connection(where, timeout=20) as connection:
            connection.sendall(head.encode() + b" " * length)
            assert status in connection.recv(100)


async def test_a_body_that_stops_coming_is_given_up(conductor: FakeConductor) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.Event().wait()

    api = make_api(conductor, Ledger(None), policy=AccessPolicy(body_read_timeout=0.05))
    transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answering = client.post("/generate", content=body(), headers=JSON)
        answer = await asyncio.wait_for(answering, 10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/images/edits", "multipart/form-data; boundary=x")]
)
async def test_a_client_that_leaves_while_it_sends_is_no_fault_of_ours(
    conductor: FakeConductor, path: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages: Any = iter(
        [
            {"type": "http.request", "body": b"--x\r\n", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    sent: list[Any] = []
    headers = {"host": "localhost", "content-type": kind, "content-length": "99"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(n.encode(), v.encode()) for n, v in headers.items()],
        "client": ("127.0.0.1", 1),
    }

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    await make_api(conductor, Ledger(None))(scope, receive, send)
    assert sent[0]["status"] == 400
    assert not caplog.records


async def test_a_preflight_that_asks_for_too_much_is_refused_in_the_one_shape(
    client: Client,
) -> None:
    options = ORIGIN | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-odd",
    }
    answer = await client().options("/generate", headers=options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert answer.json()["error"]["requestId"] == answer.headers["x-request-id"]


async def test_an_address_with_a_slash_too_many_is_not_there_rather_than_elsewhere(
    client: Client,
) -> None:
    for path in ("/generate/", "/v1/images/generations/"):
        assert (await client().post(path, json={"prompt": "a"})).status_code == 404


async def test_a_length_that_is_no_sensible_number_is_over_the_limit(client: Client) -> None:
    headers = JSON | {"Content-Length": "9" * 5000}
    answer = await client().post("/generate", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "//sdapi/v1/options"), ("POST", "/v1//images/generations"), ("POST", "///generate")],
)
async def test_an_address_with_a_slash_at_its_end_works(
    client: Client, method: str, path: str
) -> None:
    """Open WebUI and others add their own slash to the one of the address."""
    keyed = client(policy=AccessPolicy(keys=digests(["a-key"])))
    body: dict[str, Any] = {"json": {"prompt": "a fox"}} if method == "POST" else {}
    address = f"http://localhost{path}"  # httpx would read //sdapi as a host
    assert (await keyed.request(method, address, **body)).status_code == 401
    key = {"Authorization": "Bearer a-key"}
    answer = await keyed.request(method, address, headers=key, **body)
    assert answer.status_code in (200, 201), answer.text


BASIC = {"authorization": f"Basic {b64encode(b'u:a-key').decode()}"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "//sdapi/v1/options", BASIC, 200),
        ("GET", "//sdapi//v1/options", {}, 401),
        ("GET", "//jobs", {}, 401),
        ("GET", "/static//../jobs", {}, 404),
        ("GET", "//livez", {"host": "evil.example"}, 200),
        ("GET", "//v1/models", {"host": "evil.example"}, 403),
    ],
)
async def test_rules_by_path_see_the_path_that_was_meant(
    ledger: WatchedLedger, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    api = make_api(FakeConductor(), ledger, INFO, AccessPolicy(keys=digests(["a-key"])))
    async with exchange(api, method, path, headers=headers) as found:
        assert await found.started() == status
    if status == 401 and "sdapi" in path:
        assert b'"detail"' in found.body  # in the shape of that door
