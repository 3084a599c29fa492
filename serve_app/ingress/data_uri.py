"""Files that come as text: data URIs (RFC 2397), or bare base64 (RFC 4648).

The media type of a URI is passed over: the file's content decides what it is.
"""

import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import pybase64

_SCHEME = "data:"
_BASE64 = "base64"
_WHITE_SPACE = b" \t\n\v\f\r"
_STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet
_PIECE = 1 << 16  # bytes unquoted at once: unquoting makes an object of every escape


def read_data(text: str) -> bytes:
    """Return the bytes in a data URI or in bare base64. Raises `ValueError`.

    White space, as in folded lines, counts for nothing in base64. Its URL-safe alphabet and text
    without padding are read too.
    """
    stripped = text.lstrip()
    if stripped[: len(_SCHEME)].lower() != _SCHEME:
        return _decoded(text.encode())
    header, comma, data = stripped[len(_SCHEME) :].partition(",")
    if not comma:
        raise ValueError("a data URI has a comma")
    if header.rpartition(";")[2].strip().lower() != _BASE64:
        return b"".join(_unquoted(data.rstrip().encode()))
    return _decoded(b"".join(_unquoted(data.encode())))


def _decoded(text: bytes) -> bytes:
    standard = text.translate(_STANDARD, _WHITE_SPACE).rstrip(b"=")
    try:
        return pybase64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _unquoted(data: bytes) -> Iterator[bytes]:
    """Yield the bytes of a percent-encoded text (RFC 3986, section 2.1), piece by piece."""
    start = 0
    while start < len(data):
        end = start + _PIECE
        escape = data.rfind(b"%", end - 2, end)  # never cut through an escape
        end = escape if escape > start else end
        yield unquote_to_bytes(data[start:end])
        start = end
