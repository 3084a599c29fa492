"""A base image as it travels, to RGB bytes of a size the checkpoint takes.

Knows no routes. The header is checked before anything is decoded; must not run on the event loop.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps

from serve_app.core.errors import InvalidImage
from serve_app.core.sizes import SizeRules

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 16_800_000
LONGEST_SIDE = 8192
_PREFIX = re.compile(r"data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)
_BROKEN = (  # what Pillow raises at files that are not what they say
    OSError,
    SyntaxError,
    ValueError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A picture ready for the VAE: height * width * 3 bytes, RGB."""

    width: int
    height: int
    rgb: bytes


def read_image(text: str, number: int, sizes: SizeRules) -> BaseImage:
    """The picture in a data URI or in bare base64, upright, on white, in a legal size.

    Raises `InvalidImage`, which says which image and why.
    """
    data = _decoded(text, number)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
                raise InvalidImage(
                    f"image {number} is {width} x {height}: at most {LONGEST_SIDE} a side and "
                    f"{MOST_PIXELS / 1e6:.1f} megapixels are taken"
                )
            upright = ImageOps.exif_transpose(image)
            picture = _on_white(upright)
    except InvalidImage:
        raise
    except _BROKEN:
        raise InvalidImage(f"image {number} is no readable PNG, JPEG or WebP") from None
    size = sizes.fit(*picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return BaseImage(*size, picture.tobytes())


def _decoded(text: str, number: int) -> bytes:
    bare = "".join(_PREFIX.sub("", text, count=1).split())
    try:
        return base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            f"image {number} is neither base64 nor a data URI of a PNG, JPEG or WebP"
        ) from None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")
