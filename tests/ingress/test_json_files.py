"""Files decoded out of JSON while it arrives: the same values and errors as of the whole text."""

import base64
import gc
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.errors import InvalidImage
from serve_app.ingress.http_errors import InvalidJson
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.json_files import JsonFiles
from serve_app.ingress.strict_json import parse_json

FIELDS = frozenset({"images", "baseImages"})
FILE = bytes(range(256)) * 3
TEXT = base64.b64encode(FILE).decode()


def read(body: bytes, size: int) -> Any:
    """Return the value of a body that arrives in pieces, with the files as bytes or None."""
    files = JsonFiles(FIELDS)
    for start in range(0, len(body), size):
        files.feed(body[start : start + size])
    value = files.finish(parse_json)
    return _plain(value)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case InputFile():
            try:
                return value.take("image 0")
            except InvalidImage:
                return None
        case _:
            return value


SIZES = [1, 2, 3, 7, 64, 10_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        TEXT.replace("/", "\\/"),
        TEXT.replace("+", "\\u002b"),
        TEXT[:40] + "\\n" + TEXT[40:] + "\\r\\n",
    ],
    ids=["bare", "data URI", "as PHP writes it", "escaped", "folded"],
)
def test_a_file_is_read_whatever_pieces_it_arrives_in(text: str, size: int) -> None:
    body = f'{{"prompt": "a \\"fox\\" [", "images": ["{text}", 7, "!"], "steps": [1]}}'
    expected = {"prompt": 'a "fox" [', "images": [FILE, 7, None], "steps": [1]}
    assert read(body.encode(), size) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"baseImages": [TEXT], "images": [TEXT, TEXT]},
        {"config": {"images": ["a"]}, "prompt": ["images"], "x": {"images": [["a"]]}},
        {"images": {"images": ["a"]}},
        {"images": [["a"], {"images": ["b"]}, TEXT]},
        ["images", ["a"]],
        {"images": "a", "prompt": "images", "steps": ["b"]},
        "images",
        [],
        {},
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_only_the_lists_of_the_body_itself_have_files(value: Any, size: int) -> None:
    expected = value
    if isinstance(value, dict):
        expected = {
            key: [FILE if item == TEXT else item for item in items]
            if key in FIELDS and isinstance(items, list)
            else items
            for key, items in value.items()
        }
    if value == ["images", ["a"]]:
        expected = ["images", [""]]  # refused in any case: the body must be an object
    assert read(json.dumps(value).encode(), size) == expected


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_key_with_escapes_is_the_same_key(size: int) -> None:
    assert read(b'{"im\\u0061ges": ["QUFB"], "x\\u0061": ["QUFB"]}', size) == {
        "images": [b"AAA"],
        "xa": ["QUFB"],
    }


@pytest.mark.parametrize("size", [1, 1000])
def test_a_backslash_before_a_slash_is_kept(size: int) -> None:
    assert read(b'{"images": ["data:,a\\\\/b\\/c"]}', size) == {"images": [b"a\\/b/c"]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": ["QUFB',
        b'{"images": ["QUFB"',
        b'{"images": ["QUFB\n"]}',
        b'{"images": ["QUFB\\x"]}',
        b'{"images": ["QUFB\\u00zz and more"]}',
        b'{"images": ["QUFB\\u00',
        b'{"images": ["\xff"]}',
        b'{"images": ["QUFB"], "images": ["QUFB"]}',
        b'{"prompt": "\\u12',
        b'{"prompt": "\xff", "images": ["QUFB"]}',
        b'{"images": ["QUFB"]]',
        b'["QUFB"',
        b"[" * 200_000,
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_json_is_refused_as_before(body: bytes, size: int) -> None:
    with pytest.raises(InvalidJson):
        read(body, size)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
    ),
    st.booleans(),
    st.integers(1, 9),
)
def test_a_value_without_files_is_the_one_that_json_has(
    value: Any, ascii_only: bool, size: int
) -> None:
    body = json.dumps({"x": value}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert read(body, size) == parse_json(body)


def test_a_file_is_in_memory_once_while_it_arrives_and_not_at_all_when_taken() -> None:
    piece, number = b"QUFB" * (2**14), 128
    files = JsonFiles(FIELDS)
    gc.disable()  # what is left to the collector may stay for minutes
    tracemalloc.start()
    try:
        files.feed(b'{"images": ["')
        for _ in range(number):
            files.feed(piece)
        files.feed(b'"]}')
        value = files.finish(parse_json)
        assert len(value["images"][0].take("")) == number * len(piece) * 3 // 4
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak < 1.3 * number * len(piece)
    assert left < 2**20
