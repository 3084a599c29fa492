"""Files in texts: the forms that RFC 2397 and RFC 4648 allow, and those that clients write."""

import base64
import random
import re
import tracemalloc
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.data_uri import FileDecoder, read_data

FILE = b"\x89PNG\r\n\x1a\n\xfb\xff\xfe?>" + bytes(range(256))
BASE64 = base64.b64encode(FILE).decode()
URL_SAFE = base64.urlsafe_b64encode(FILE).decode()
HEADERS = [
    "data:image/png;base64,",
    "data:;base64,",
    "data:image/png;charset=utf-8;base64,",
    "data:image/png;name=a%20fox.png;base64,",
    'data:image/png;name="fox; red.png";base64,',
    "data:text/plain;base64,",
    "data:application/octet-stream;base64,",
    "data:image/svg+xml;base64,",
    "DATA:IMAGE/PNG;BASE64,",
    "Data:image/png;Base64,",
    "\n data:image/jpg;base64,",
    "data:image/png; charset=utf-8; base64,",
]


@pytest.mark.parametrize("header", ["", *HEADERS])
@pytest.mark.parametrize(
    "data",
    [
        BASE64,
        BASE64.rstrip("="),
        URL_SAFE,
        URL_SAFE.rstrip("="),
        BASE64 + "\n",
        "\r\n".join(re.findall(".{1,76}", BASE64)),
        f" {BASE64[:8]} {BASE64[8:]}",
    ],
    ids=["padded", "unpadded", "URL-safe", "URL-safe, unpadded", "newline", "folded", "spaces"],
)
def test_every_form_gives_the_same_file(header: str, data: str) -> None:
    assert read_data(header + data) == FILE


def test_base64_may_be_percent_encoded_in_a_uri() -> None:
    escaped = BASE64.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    assert "%" in escaped
    assert read_data("data:image/png;base64," + escaped) == FILE


@given(st.binary(max_size=400))
def test_a_uri_without_base64_is_percent_encoded(file: bytes) -> None:
    for header in ("data:,", "data:image/png,", "data:image/png;charset=utf-8,"):
        assert read_data(header + quote_from_bytes(file)) == file


def test_a_long_percent_encoded_file_is_read_whole() -> None:
    """Pieces of every length end within an escape somewhere."""
    file = random.Random(3).randbytes(300_000)
    assert read_data("data:image/webp," + quote_from_bytes(file)) == file
    assert read_data("data:," + "%41" * 200_000) == b"A" * 200_000


def test_white_space_everywhere_takes_no_more_memory_than_the_text() -> None:
    text = "QUFB " * 200_000
    tracemalloc.start()
    try:
        assert read_data(text) == b"AAA" * 200_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text)


@pytest.mark.parametrize("text", ["data:,AAA", "QUFB"])
def test_white_space_before_a_file_is_not_kept(text: str) -> None:
    """Else each piece of it is copied with all pieces before: a quadratic time."""
    decoder, space = FileDecoder(), b" \t\r\n" * 2**14
    tracemalloc.start()
    try:
        for _ in range(100):
            decoder.feed(space)
        decoder.feed(text.encode())
        assert decoder.finish() == b"AAA"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(space)


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "data:image/png;base64",
        "data:image/png;base64,not base64!",
        "data:image/png;base64,%zz",
        "A",
        "http://example.com/a.png",
        "file:///etc/passwd",
        BASE64[:8] + "data:image/png;base64," + BASE64[8:],
        "a,b",
        "ÀÀÀÀ",
    ],
)
def test_anything_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|comma"):
        read_data(text)
