"""Results as responses: JSON with images in base64, other image formats, warnings as headers.

Encoding megabytes takes milliseconds to seconds, so it must not run on the event loop.
"""

import json
import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import Any

import pybase64
from PIL import Image
from starlette.responses import Response

from serve_app.core.service.jobs import JobResult
from serve_app.ingress.errors import shorten
from serve_app.ingress.metadata.record import INFOTEXT, RECORD
from serve_app.ingress.metadata.xmp import packet_with_record

WARNING_HEADER = "X-Aura-Warning"
_MAX_WARNING_BYTES = 2048  # of all: nginx takes 4 KB of headers, and answers 502 for more
_USER_COMMENT = 0x9286  # EXIF 2.3, section 4.6.5: where tools look for `parameters` in JPEG, WebP
_EXIF_IFD = 0x8769


@dataclass(frozen=True, slots=True)
class RawJson:
    """A value that is JSON text already."""

    text: str


@dataclass(frozen=True, slots=True)
class DataUri:
    """A file as a URL that holds it (RFC 2397)."""

    media_type: str
    file: bytes


def to_json(content: Any) -> bytes:
    """Return JSON in which `bytes` are base64 strings, and `RawJson` is copied as it is.

    Base64 needs no escaping, so megabytes of it are joined with the rest instead of going through
    the JSON encoder. Call it off the event loop.
    """
    token = secrets.token_hex(8)  # nothing that a caller sent can contain it
    parts: list[tuple[bytes, ...]] = []  # not joined before all is: megabytes are copied once

    def placeholder(value: object) -> str:
        match value:
            case bytes():
                parts.append((b'"', pybase64.b64encode(value), b'"'))
            case DataUri(media_type, file):
                head = b'"data:%b;base64,' % media_type.encode()
                parts.append((head, pybase64.b64encode(file), b'"'))
            case RawJson(text):
                parts.append((text.encode(),))
            case _:
                raise TypeError(f"{type(value).__name__} is not JSON serializable")
        return f"{token}:{len(parts) - 1}"

    text = json.dumps(content, default=placeholder, separators=(",", ":"), allow_nan=False)
    pieces = re.split(f'"{token}:(\\d+)"', text)
    return b"".join(
        part
        for number, piece in enumerate(pieces)
        for part in (parts[int(piece)] if number % 2 else (piece.encode(),))
    )


class ImagesJSONResponse(Response):
    """A response of `to_json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body. Call it, that is make the response, off the event loop."""
        return to_json(content)


def images_content(result: JobResult) -> dict[str, Any]:
    """Return the content of a successful response: the images, and what they were made with."""
    return {"images": list(result.pngs), "meta": RawJson(result.meta)}


def converted(png: bytes, format: str, quality: int, max_side: int | None = None) -> bytes:
    """Return one of our PNGs as "jpeg" or "webp": the text in EXIF, the record in XMP.

    With a `max_side`, in pixels, a larger image is made that small.
    """
    with Image.open(BytesIO(png)) as image:
        image.load()
        comment, record = str(image.info[INFOTEXT]), str(image.info[RECORD])
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be")
    pixels = image.convert("RGB")
    if max_side is not None:
        pixels.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = BytesIO()
    pixels.save(
        file,
        format.upper(),
        quality=quality,
        exif=exif.tobytes(),
        xmp=packet_with_record(record),
    )
    return file.getvalue()


def add_warnings(response: Response, warnings: Iterable[str]) -> Response:
    """Add a header for each warning to a response, for clients that read no JSON; return it.

    What would be too long for a proxy in front is left out, with a header that says so.
    """
    texts = list(dict.fromkeys(map(_header_text, warnings)))
    sizes = accumulate(len(WARNING_HEADER) + len(": \r\n") + len(text) for text in texts)
    kept = sum(size <= _MAX_WARNING_BYTES for size in sizes)
    if kept < len(texts):
        texts[kept:] = [f"{len(texts) - kept} more warnings are left out here"]
    for text in texts:
        response.headers.append(WARNING_HEADER, text)
    return response


def _header_text(text: str) -> str:
    """Return the text as one line of ASCII: headers have no other encoding (RFC 9110, 5.5)."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
    visible = "".join(letter if letter.isprintable() else "?" for letter in letters)
    return shorten(visible).replace("…", "...").encode("ascii", "replace").decode()
