"""Compressed request bodies: read within the body limit, refused where they can't be read."""

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.content_encoding import Decoder, open_decoder
from serve_app.ingress.http_errors import InvalidEncoding
from tests.support.api import Client, make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving
from tests.support.pictures import picture

BODY = b'{"prompt": "a", "imageCount": 1}'
JSON = {"Content-Type": "application/json"}
LIMIT = 2**20
SMALL_LIMIT = AccessPolicy(max_body_bytes=LIMIT)
CODERS: dict[str, Any] = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


def coded_as(encoding: str) -> dict[str, str]:
    return JSON | {"Content-Encoding": encoding}


@pytest.mark.parametrize("encoding", [*CODERS, "GZIP", " gzip "])
async def test_a_compressed_body_is_read_as_the_plain_one(
    client: Client, conductor: FakeConductor, encoding: str
) -> None:
    content = CODERS[encoding.strip().lower()](BODY)
    answer = await client().post("/generate", content=content, headers=coded_as(encoding))
    assert answer.status_code == 201
    assert [spec.prompt for spec in conductor.specs] == ["a"]


@pytest.mark.parametrize("encoding", ["identity", ""])
async def test_identity_is_the_body_itself(client: Client, encoding: str) -> None:
    answer = await client().post("/generate", content=BODY, headers=coded_as(encoding))
    assert answer.status_code == 201


@pytest.mark.parametrize("route", ["/generate", "/refine", "/licenses", "/v1/images/generations"])
@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "aws-chunked"])
async def test_another_coding_is_refused_with_those_that_are_read(
    client: Client, conductor: FakeConductor, route: str, encoding: str
) -> None:
    answer = await client().post(route, content=BODY, headers=coded_as(encoding))
    assert answer.status_code == 415
    error = answer.json()["error"]
    assert error["code"].upper() == "UNSUPPORTED_MEDIA_TYPE"
    assert error["message"] == "Content-Encoding must be gzip or deflate, or absent"
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert not conductor.calls


async def test_a_request_without_a_body_may_name_any_coding(client: Client) -> None:
    answer = await client().get("/livez", headers={"Content-Encoding": "br"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        BODY,
        gzip.compress(BODY)[:-1],
        gzip.compress(BODY)[:-9],
        gzip.compress(BODY)[:5],
        gzip.compress(BODY) + b"more",
        zlib.compress(BODY),
    ],
    ids=["plain", "without its last byte", "without its end", "a header", "more", "zlib"],
)
async def test_a_body_that_is_not_what_it_says_is_refused(
    client: Client, conductor: FakeConductor, content: bytes
) -> None:
    answer = await client().post("/generate", content=content, headers=coded_as("gzip"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "VALIDATION_ERROR"
    assert answer.json()["error"]["message"] == "the body is not valid gzip"
    assert not conductor.calls


async def test_a_compressed_form_is_read_too(client: Client, conductor: FakeConductor) -> None:
    file = base64.b64decode(picture(64, 64))
    form: Any = {"image": ("a.png", file, "image/png"), "prompt": (None, "a")}
    plain = httpx.Request("POST", "http://localhost/v1/images/edits", files=form)
    headers = {"Content-Type": plain.headers["content-type"], "Content-Encoding": "gzip"}
    answer = await client().post(
        "/v1/images/edits", content=gzip.compress(plain.read()), headers=headers
    )
    assert answer.status_code == 200, answer.text
    assert len(conductor.calls) == 1


def bomb(size: int) -> bytes:
    """Return a gzip body that unfolds to JSON of about `size` bytes."""
    coder = zlib.compressobj(9, wbits=31)
    pieces = [coder.compress(b'{"prompt": "')]
    pieces += [coder.compress(b" " * 2**20) for _ in range(size // 2**20)]
    return b"".join([*pieces, coder.compress(b'a"}'), coder.flush()])


async def test_a_bomb_is_refused_early_and_takes_no_more_memory_than_a_legal_body(
    conductor: FakeConductor,
) -> None:
    content, read = bomb(256 * LIMIT), 0
    assert len(content) < LIMIT  # so that the announced length refuses nothing

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for start in range(0, len(content), 1024):
            read += 1024
            yield content[start : start + 1024]

    api = make_api(conductor, Ledger(None), policy=SMALL_LIMIT)
    transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        tracemalloc.start()
        try:
            answer = await http.post("/generate", content=pieces(), headers=coded_as("gzip"))
            whole = await http.post("/generate", content=content, headers=coded_as("gzip"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    for each in (answer, whole):
        assert (each.status_code, each.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert read < len(content) / 50
    assert peak < 4 * LIMIT
    assert not conductor.calls


async def test_a_body_that_unfolds_to_nothing_without_end_is_refused(client: Client) -> None:
    empty = gzip.compress(b"") * (2 * LIMIT // 20)
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for start in range(0, len(empty), 2**16):
            sent += 2**16
            yield empty[start : start + 2**16]

    http = client(policy=SMALL_LIMIT)
    answer = await http.post("/generate", content=pieces(), headers=coded_as("gzip"))
    assert answer.status_code == 413
    assert sent <= LIMIT + 2**17


async def test_a_body_just_within_the_limit_is_read_and_one_byte_more_is_not(
    client: Client,
) -> None:
    http = client(policy=SMALL_LIMIT)
    for size, status in ((LIMIT, 400), (LIMIT + 1, 413)):
        text = json.dumps({"prompt": ""}).encode()
        content = gzip.compress(text[:-1] + b" " * (size - len(text)) + b"}")
        answer = await http.post("/generate", content=content, headers=coded_as("gzip"))
        assert answer.status_code == status


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_real_server_reads_a_compressed_body(conductor: FakeConductor, parser: str) -> None:
    with serving(make_api(conductor, Ledger(None)), parser) as address:
        content = gzip.compress(BODY)
        answer = httpx.post(f"{address}/generate", content=content, headers=coded_as("gzip"))
        assert answer.status_code == 201


@pytest.mark.parametrize("size", [0, 1, 1000, 2**16, 3 * 2**16 + 5])
@pytest.mark.parametrize("fed", [1, 7, 1000, 2**20])
def test_pieces_join_to_the_body_however_they_are_fed(size: int, fed: int) -> None:
    random = Random(size)
    body = random.randbytes(size // 2) + bytes(size - size // 2)
    coded = gzip.compress(body[: size // 3]) + gzip.compress(body[size // 3 :])
    decoder, pieces = Decoder("gzip"), []
    for start in range(0, len(coded), fed):
        decoder.feed(coded[start : start + fed])
        while piece := decoder.read():
            pieces.append(piece)
    decoder.close()
    assert b"".join(pieces) == body
    assert max(map(len, pieces), default=0) <= 2**16


def test_a_deflate_body_has_one_member() -> None:
    decoder = Decoder("deflate")
    decoder.feed(zlib.compress(b"a") * 2)
    assert decoder.read() == b"a"
    with pytest.raises(InvalidEncoding, match="not valid deflate"):
        decoder.read()


def test_several_codings_are_one_too_many() -> None:
    with pytest.raises(LookupError):
        open_decoder("gzip,deflate")
