"""Content codings of request bodies: gzip and deflate (RFC 9110, section 8.4.1).

A body unfolds a piece at a time, so that its size can be limited before it is all in memory.
"""

import zlib
from collections import deque

from serve_app.ingress.http_errors import InvalidEncoding

ACCEPTED = "gzip, deflate"
_PIECE = 2**16  # bytes
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's names of the two formats


class Decoder:
    """The decoded bytes of one body, in pieces of at most 64 KiB whatever it unfolds to.

    A gzip body may consist of several members (RFC 1952, section 2.2).
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = self._open()
        self._coded = b""  # what the stream has not taken yet
        self._waiting: deque[bytes] = deque()  # what comes after it

    def feed(self, coded: bytes) -> None:
        """Take the next bytes as they arrived."""
        self._waiting.extend(coded[i : i + _PIECE] for i in range(0, len(coded), _PIECE))

    def read(self) -> bytes:
        """Return the next piece; empty when all that was fed is decoded.

        Raises `InvalidEncoding`.
        """
        while True:
            if not self._coded and self._waiting:
                self._coded = self._waiting.popleft()
            if self._stream.eof:
                if not self._coded:
                    return b""
                self._start_member()
            try:
                piece = self._stream.decompress(self._coded, _PIECE)
            except zlib.error:
                raise self._invalid() from None
            self._coded = self._stream.unconsumed_tail or self._stream.unused_data
            if piece or not (self._coded or self._waiting):
                return piece

    def close(self) -> None:
        """Return if the body ended where its coding does. Raises `InvalidEncoding`."""
        if not self._stream.eof:
            raise self._invalid()

    def _start_member(self) -> None:
        if self._encoding == "deflate":
            raise self._invalid()
        self._stream = self._open()

    def _open(self) -> "zlib._Decompress":
        return zlib.decompressobj(_WINDOW_BITS[self._encoding])

    def _invalid(self) -> InvalidEncoding:
        return InvalidEncoding(f"the body is not valid {self._encoding}")


def open_decoder(content_encoding: str) -> Decoder | None:
    """Return the decoder of a Content-Encoding header; None where the body is as it is.

    Raises `LookupError` for a coding that is not read, and for several.
    """
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOW_BITS:
        raise LookupError(encoding)
    return Decoder(encoding)
