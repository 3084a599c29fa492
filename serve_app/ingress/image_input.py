"""A base image as it travels, to RGB bytes of a size the checkpoint takes.

Knows no routes. The header is checked before anything is decoded; must not run on the event loop.
A large picture is brought to its size plane by plane, so that it never stands in memory twice.
"""

import binascii
import hashlib
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pybase64
from PIL import Image, ImageChops, ImageOps

from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.errors import InvalidImage
from serve_app.ingress.png_metadata import read_prompt

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_800_000
MAX_SIDE = 8192
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; ours is lower, and refuses
_PREFIX = re.compile(r"\s*data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)
_BROKEN = (  # what Pillow raises at files that are not what they say
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A picture ready for the VAE: height * width * 3 bytes, RGB.

    `digest` is of the file it came in; `prompt` what it was made from, if this service made it.
    """

    width: int
    height: int
    rgb: bytes
    digest: str
    prompt: str | None


def read_base64(text: str, number: int) -> bytes:
    """The file in a data URI or in bare base64. Raises `InvalidImage` saying which image."""
    prefix = _PREFIX.match(text)
    bare = "".join(text[prefix.end() if prefix else 0 :].split())
    try:
        return pybase64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            f"image {number} is neither base64 nor a data URI of a PNG, JPEG or WebP"
        ) from None


def read_image(
    file: bytes, number: int, sizes: SizeRules, wanted: tuple[int, int] | None = None
) -> BaseImage:
    """The picture in a file, upright, on white, its first frame, in a legal size.

    `wanted` is a legal size to fill, what sticks out being cut off; else the picture's own is kept
    as far as it is legal. Raises `InvalidImage`, which says which image and why.
    """
    try:
        # closing frees the pixels at once: megabytes that would else wait for the collector
        with closing(Image.open(BytesIO(file), formats=FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise InvalidImage(
                    f"image {number} is too large: at most {MAX_SIDE} a side and "
                    f"{MAX_PIXELS / 1e6:.1f} megapixels are taken, got {width} x {height}"
                )
            turn = _orientation(image)
            upright = (height, width) if turn in _LYING else (width, height)
            size = wanted or sizes.fit(*upright)
            picture = _sized(image, size[::-1] if turn in _LYING else size)
            if turn in _UPRIGHT:
                picture = picture.transpose(_UPRIGHT[turn])
            rgb, prompt = picture.tobytes(), read_prompt(image.info)
    except InvalidImage:
        raise
    except _BROKEN:
        raise InvalidImage(f"image {number} is no readable PNG, JPEG or WebP") from None
    return BaseImage(*size, rgb, hashlib.sha256(file).hexdigest(), prompt)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse the pixels
        return 1


def _sized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in RGB, on white, filling the size. The one that was read may be closed."""

    def fill(plane: Image.Image) -> Image.Image:
        if plane.size == size:
            return plane
        return ImageOps.fit(plane, size, Image.Resampling.LANCZOS)

    if image.mode.startswith("I;16"):  # 16 bits of grey, low byte first: the upper eight count
        shades = np.frombuffer(image.tobytes("raw", "I;16"), "<u2")
        upper = shades.view(np.uint8)[1::2].copy()
        upper[shades == image.info.get("transparency", -1)] = 255
        return fill(Image.fromarray(upper.reshape(image.size[::-1]))).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # 16 bits of colour, which Pillow reads as 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None:
        keyed, image = image, image.convert("RGBA")
        keyed.close()
    if image.mode in ("RGBA", "LA"):
        return _on_white(image, fill)
    if image.mode in ("P", "1"):  # numbers of colours can't be blended
        image = image.convert("RGB")
    return fill(image).convert("RGB")


def _on_white(image: Image.Image, fill: Callable[[Image.Image], Image.Image]) -> Image.Image:
    bands = image.getbands()
    image.paste((255,) * len(bands), mask=ImageChops.invert(image.getchannel("A")))  # in place
    planes = [fill(image.getchannel(band)) for band in bands[:-1]]
    return Image.merge("RGB", planes if len(planes) == 3 else planes * 3)
