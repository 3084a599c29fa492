"""PNG chunks (PNG 1.2, chapters 3 and 4; `eXIf` from the extensions of 2017)."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from serve_app.ingress.containers.container import (
    MAX_METADATA_BYTES,
    Container,
    KeptRanges,
    bounded,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = len(SIGNATURE) + 25  # with the IHDR chunk, which must come first
XMP_KEYWORD = "XML:com.adobe.xmp"
_TRANSPARENCY = b"tRNS"  # the one ancillary chunk that changes pixels here
_EXIF = b"eXIf"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF_KEYWORD = "Raw profile type exif"  # ImageMagick's, in hexadecimal behind three lines
_MAX_KEYWORD = 79  # bytes


def size_of(file: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, from its header."""
    width, height = struct.unpack_from(">II", file, len(SIGNATURE) + 8)
    return width, height


def split(file: bytes, record_keyword: str) -> Container:
    """Return a PNG in parts. A chunk that reaches beyond the end is left to the decoder.

    Of several texts under one keyword the first counts, so that no file costs more than one of
    each. An animation loses its frames, but not the still image that every APNG begins with.
    """
    kept = KeptRanges(file)
    kept.keep(0, len(SIGNATURE))
    exif: bytes | None = None
    texts: dict[str, bytes | None] = dict.fromkeys((record_keyword, XMP_KEYWORD, _EXIF_KEYWORD))
    end = len(SIGNATURE)
    for kind, start, end in _chunks(file):
        is_critical = not kind[0] & 0x20
        if is_critical or kind == _TRANSPARENCY:
            kept.keep(start, end)
        elif kind == _EXIF and exif is None:
            exif = bounded(file[start + 8 : end - 4])
        elif kind in _TEXTS:
            keyword = _keyword(file[start + 8 : min(end - 4, start + 9 + _MAX_KEYWORD)])
            if texts.get(keyword, b"") is None:
                texts[keyword] = _text(kind, file[start + 9 + len(keyword) : end - 4])
    if end < len(file):
        kept.keep(end, len(file))
    record = texts[record_keyword]
    return Container(
        kept.joined(),
        exif or _raw_profile(texts[_EXIF_KEYWORD] or b""),
        texts[XMP_KEYWORD] or b"",
        None if record is None else record.decode("utf-8", "replace"),
    )


def text_chunk(keyword: str, text: str, *, international: bool = False) -> bytes:
    """Return a tEXt chunk if Latin-1 holds the text, else iTXt, which is UTF-8 (PNG 1.2, 4.2.3)."""
    clean = text.replace("\0", " ")
    kind, body = b"iTXt", b"\0" + b"\0\0" + b"\0\0" + clean.encode()  # uncompressed, no language
    if not international:
        with suppress(UnicodeEncodeError):
            kind, body = b"tEXt", b"\0" + clean.encode("latin-1")
    data = keyword.encode() + body
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(file: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each whole chunk, where it starts and where it ends."""
    start = len(SIGNATURE)
    while start + 12 <= len(file):
        end = start + 12 + int.from_bytes(file[start : start + 4])
        if end > len(file):
            return
        yield file[start + 4 : start + 8], start, end
        start = end


def _keyword(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("latin-1")


def _text(kind: bytes, data: bytes) -> bytes:
    """Return the text behind a keyword and its zero as UTF-8; nothing if too long or damaged."""
    if kind == b"tEXt":
        return bounded(bounded(data).decode("latin-1").encode())
    if kind == b"zTXt":
        return _inflated(data[1:]).decode("latin-1").encode()
    is_compressed, rest = data[:1] == b"\1", data[2:]
    for _ in ("language", "translated keyword"):
        rest = rest.partition(b"\0")[2]
    return _inflated(rest) if is_compressed else bounded(rest)


def _inflated(data: bytes) -> bytes:
    """Return what was deflated, of which no more is ever inflated than the limit."""
    try:
        return bounded(zlib.decompressobj().decompress(data, MAX_METADATA_BYTES + 1))
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Return the EXIF block of a hexadecimal profile: an empty line, its name, its length."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:])).removeprefix(
            b"Exif\0\0"
        )
    except ValueError:
        return b""
