"""Files that come as text: data URIs (RFC 2397), or bare base64 (RFC 4648).

The media type of a URI is passed over: the file's content decides what it is.
"""

import binascii
from collections.abc import Callable, Iterator
from io import BytesIO
from urllib.parse import unquote_to_bytes

import pybase64

_SCHEME = b"data:"
_BASE64 = b"base64"
_WHITE_SPACE = b" \t\n\v\f\r"
_STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet
_PIECE = 1 << 16  # bytes read at once: unquoting makes an object of every escape
_MAX_HEADER = 1 << 16  # bytes before the comma of a URI


class FileDecoder:
    """Decodes the file in a data URI or in bare base64 while its text arrives.

    White space, as in folded lines, counts for nothing in base64. Its URL-safe alphabet and text
    without padding are read too.
    """

    def __init__(self) -> None:
        self._file = BytesIO()  # grows in place, and gives its bytes away without a copy
        # Functions, not bound methods: those would keep the file until the collector runs.
        self._read: Callable[[FileDecoder, bytes], None] = FileDecoder._read_header
        self._write: Callable[[FileDecoder, bytes], None] = FileDecoder._write_base64
        self._pending = b""  # text of which more must arrive before it means anything
        self._quartet = b""  # the same of base64
        self._is_padded = False
        self._trailing = 0  # characters of white space at the end of a URI without base64

    def feed(self, text: bytes) -> None:
        """Take the next part of the text. Raises `ValueError`."""
        for start in range(0, len(text), _PIECE):
            self._read(self, text[start : start + _PIECE])

    def finish(self) -> bytes:
        """Return the file when all of its text has arrived. Raises `ValueError`."""
        if self._read == FileDecoder._read_header:
            if self._pending[: len(_SCHEME)].lower() == _SCHEME:
                raise ValueError("a data URI has a comma")
            self._read = FileDecoder._write_base64
        pending, self._pending = self._pending, b""
        if self._read == FileDecoder._read_quoted:
            self._write(self, pending)
        else:
            self._read(self, pending)
        if self._write == FileDecoder._write_plain:
            self._file.truncate(self._file.tell() - self._trailing)
        else:
            self._file.write(_decoded(self._quartet + b"=" * (-len(self._quartet) % 4)))
        return self._file.getvalue()

    def _read_header(self, text: bytes) -> None:
        """Wait until the text shows which of the forms it has."""
        self._pending = (self._pending + text).lstrip()  # which stands for nothing in any form
        start = self._pending[: len(_SCHEME)].lower()
        if not _SCHEME.startswith(start):
            pending, self._pending = self._pending, b""
            self._read = FileDecoder._write_base64
            self._read(self, pending)
            return
        header, comma, data = self._pending[len(_SCHEME) :].partition(b",")
        if not comma:
            if len(self._pending) > _MAX_HEADER:
                raise ValueError("a data URI has a comma")
            return
        if header.rpartition(b";")[2].strip().lower() != _BASE64:
            self._write = FileDecoder._write_plain
        self._pending = b""
        self._read = FileDecoder._read_quoted
        self._read(self, data)

    def _read_quoted(self, text: bytes) -> None:
        """Read percent-encoded text (RFC 3986, section 2.1)."""
        data = self._pending + text
        stripped = len(data.rstrip())
        self._trailing = len(data) - stripped + (0 if stripped else self._trailing)
        escape = data.rfind(b"%", max(0, len(data) - 2))  # never cut through an escape
        end = escape if escape >= 0 else len(data)
        self._pending = data[end:]
        self._write(self, unquote_to_bytes(data[:end]))

    def _write_plain(self, file: bytes) -> None:
        self._file.write(file)

    def _write_base64(self, text: bytes) -> None:
        text = text.translate(_STANDARD, _WHITE_SPACE)
        unpadded, padding, rest = text.partition(b"=")
        if (self._is_padded and unpadded) or rest.strip(b"="):
            raise ValueError("not base64: padding stands at the end alone")
        self._is_padded = self._is_padded or bool(padding)
        text = self._quartet + unpadded
        end = len(text) // 4 * 4
        self._quartet = text[end:]
        self._file.write(_decoded(text[:end]))


def read_data(text: str) -> bytes:
    """Return the bytes in a data URI or in bare base64. Raises `ValueError`."""
    decoder = FileDecoder()
    for piece in _pieces(text):
        decoder.feed(piece)
    return decoder.finish()


def _pieces(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE].encode()


def _decoded(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
