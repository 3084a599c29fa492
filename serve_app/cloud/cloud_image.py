"""The image that a cloud sends, whatever its format, as a PNG of ours.

It comes from outside, so it is bounded before it is decoded, and nothing but its pixels is kept.
"""

import zlib
from contextlib import closing
from io import BytesIO

from PIL import Image

from serve_app.core.cloud_errors import WastedCall

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 20_000_000  # of which 4K images of any ratio have fewer
MAX_SIDE = 12_288
_DECODE_ERRORS = (  # what Pillow raises for damaged or forged files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
)


def as_png(file: bytes) -> bytes:
    """Return an image file's pixels, in RGB on white, as a PNG. Raises `WastedCall`."""
    try:
        with closing(Image.open(BytesIO(file), formats=FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise WastedCall(f"the cloud sent an image of {width} x {height} pixels")
            out = BytesIO()
            _on_white(image).save(out, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
            return out.getvalue()
    except _DECODE_ERRORS:
        raise WastedCall("the cloud sent an image that can't be read") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Return a new image in RGB, without an alpha channel and whatever else the file held."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        pixels = image.convert("RGB")
    else:
        layer = image.convert("RGBA")
        pixels = Image.new("RGB", image.size, "white")
        pixels.paste(layer, mask=layer)
    pixels.info = {}
    return pixels
