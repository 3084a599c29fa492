"""Pixels to a PNG file, and previews to a JPEG file."""

import zlib
from io import BytesIO

from PIL import Image

from serve_app.runtime.networks.vae import RgbImage

# Measured by `bench png`. Filtered pixels of an image rarely repeat except in runs. Run-length
# matching is faster than a search for repeats and leaves Huffman codes to the pixel values, so
# files are smaller too. Only flat drawings get larger than at level 6, and their files are small.
PNG_LEVEL, PNG_STRATEGY = 1, zlib.Z_RLE
_PREVIEW_QUALITY = 85  # Pillow's scale; 128 x 128 pixels take some 4 kB


def encode_png(image: RgbImage) -> bytes:
    """Return an image as a PNG file; equal images give equal bytes."""
    file = BytesIO()
    Image.fromarray(image).save(
        file, format="PNG", compress_level=PNG_LEVEL, compress_type=PNG_STRATEGY
    )
    return file.getvalue()


def encode_preview(image: RgbImage) -> bytes:
    """Return a preview as a JPEG file."""
    file = BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=_PREVIEW_QUALITY)
    return file.getvalue()
