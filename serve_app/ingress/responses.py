"""Results as bodies: our JSON, a bare picture, other picture formats.

Knows no routes. Megabytes of base64 are joined, not escaped again: base64 needs no escaping. What
takes long must not run on the event loop.
"""

from collections.abc import Sequence
from io import BytesIO

import pybase64
from PIL import Image

from serve_app.core.service.jobs import JobResult
from serve_app.ingress.png_metadata import INFOTEXT, xmp_packet

_USER_COMMENT = 0x9286  # EXIF 2.3, section 4.6.5: where tools look for `parameters` in JPEG, WebP
_EXIF_IFD = 0x8769


def images_response_body(result: JobResult) -> bytes:
    """The pictures in base64, and what they were made with: the answer of /generate and /refine."""
    parts = [b'{"images":["']
    for png in result.pngs:
        parts += pybase64.b64encode(png), b'","'
    return b"".join([*parts[:-1], b'"],"meta":', result.meta.encode(), b"}"])


def converted(png: bytes, format: str, quality: int) -> bytes:
    """The picture in another format, "jpeg" or "webp", still remembering its request."""
    with Image.open(BytesIO(png)) as image:
        image.load()
        comment = str(image.info.get(INFOTEXT, ""))
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be")
    file = BytesIO()
    image.convert("RGB").save(
        file, format.upper(), quality=quality, exif=exif.tobytes(), xmp=xmp_packet()
    )
    return file.getvalue()


def prefers_png(accept: str) -> bool:
    """Whether an Accept header would rather have a PNG than JSON (RFC 9110, section 12.5.1)."""
    ranges = [_range(part) for part in accept.lower().split(",")]
    return _weight("image/png", ranges) > _weight("application/json", ranges)


def _range(part: str) -> tuple[str, float]:
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    weights = [p[2:] for p in parameters if p.startswith("q=")]
    try:
        return kind, float(weights[0]) if weights else 1.0
    except ValueError:
        return kind, 0.0


def _weight(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that a media type falls in."""
    for wanted in (kind, kind.split("/")[0] + "/*", "*/*"):
        for name, weight in ranges:
            if name == wanted:
                return weight
    return 0.0
