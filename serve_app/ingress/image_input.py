"""The input images of a request, from their files to RGB bytes of a size that the checkpoint takes.

The header is checked before anything is decoded. Decoding must not run on the event loop. A large
image is resized plane by plane, so that it is never in memory twice.
"""

import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import pybase64
from PIL import Image, ImageChops, ImageOps

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.errors import InvalidImage
from serve_app.ingress.png_metadata import read_prompt

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_800_000
MAX_SIDE = 8192
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; MAX_PIXELS is lower and refuses
_PREFIX = re.compile(r"\s*data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)
_DECODE_ERRORS = (  # what Pillow raises for damaged or forged files
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
_ROTATED = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The files that one image is made from: bytes, or base64 text as in a JSON body."""

    base: str | bytes


@dataclass(frozen=True, slots=True)
class LoadedInputs:
    """The files of one image, read, and the width and height that the image will have.

    `digests` are those of the files, by their names in the metadata of the image. `prompt` is what
    the base image was made from if this service made it.
    """

    size: tuple[int, int]
    inputs: ImageInputs = NO_INPUTS
    digests: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class BaseImage:
    """An image ready for the VAE: height * width * 3 bytes, RGB.

    `digest` is that of its file. `prompt` is what it was made from if this service made it.
    """

    width: int
    height: int
    rgb: bytes
    digest: str
    prompt: str | None


def load_inputs(
    files: InputFiles, number: int, sizes: SizeRules, target_size: tuple[int, int] | None = None
) -> LoadedInputs:
    """Return the files of an image, read as `read_image` does. Raises `InvalidImage`.

    `number` counts the images of the request from 0.
    """
    base, subject = files.base, f"image {number}"
    data = read_base64(base, subject) if isinstance(base, str) else base
    image = read_image(data, subject, sizes, target_size)
    return LoadedInputs(
        (image.width, image.height),
        ImageInputs(init_image=image.rgb),
        {"baseImage": image.digest},
        image.prompt,
    )


def read_base64(text: str, subject: str) -> bytes:
    """Return the file in a data URI or in bare base64. Raises `InvalidImage` of the subject."""
    prefix = _PREFIX.match(text)
    bare = "".join(text[prefix.end() if prefix else 0 :].split())
    try:
        return pybase64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "is neither base64 nor a data URI of a PNG, JPEG or WebP", subject=subject
        ) from None


def read_image(
    file: bytes, subject: str, sizes: SizeRules, target_size: tuple[int, int] | None = None
) -> BaseImage:
    """Return the first frame in a file: upright, on white, in a legal size.

    With a `target_size`, which must be legal, the image fills it and the rest is cropped. Without
    one it keeps its own size as far as that is legal. Raises `InvalidImage` of the subject.
    """
    try:
        # closing frees megabytes of pixels at once, where the collector would be later
        with closing(Image.open(BytesIO(file), formats=FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise InvalidImage(
                    f"is too large: a side may have at most {MAX_SIDE} pixels and the image "
                    f"{MAX_PIXELS / 1e6:.1f} megapixels, got {width} x {height}",
                    subject=subject,
                )
            orientation = _orientation(image)
            is_rotated = orientation in _ROTATED
            upright = (height, width) if is_rotated else (width, height)
            size = target_size or sizes.fit(*upright)
            resized = _resize(image, size[::-1] if is_rotated else size)
            if orientation in _UPRIGHT:
                resized = resized.transpose(_UPRIGHT[orientation])
            rgb, prompt = resized.tobytes(), read_prompt(image.info)
    except InvalidImage:
        raise
    except _DECODE_ERRORS:
        raise InvalidImage("is not a readable PNG, JPEG or WebP", subject=subject) from None
    return BaseImage(*size, rgb, hashlib.sha256(file).hexdigest(), prompt)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels are good, whatever the EXIF block is
        return 1


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image in RGB, on white, filling the size; the image itself may be closed."""

    def fill(plane: Image.Image) -> Image.Image:
        if plane.size == size:
            return plane
        return ImageOps.fit(plane, size, Image.Resampling.LANCZOS)

    if image.mode.startswith("I;16"):  # 16 bits of grey, low byte first: keep the high byte
        shades = np.frombuffer(image.tobytes("raw", "I;16"), "<u2")
        upper = shades.view(np.uint8)[1::2].copy()
        upper[shades == image.info.get("transparency", -1)] = 255
        return fill(Image.fromarray(upper.reshape(image.size[::-1]))).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # 16 bits a channel, which Pillow reads as 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None:
        original, image = image, image.convert("RGBA")
        original.close()
    if image.mode in ("RGBA", "LA"):
        return _on_white(image, fill)
    if image.mode in ("P", "1"):  # indices of colours can't be blended
        image = image.convert("RGB")
    return fill(image).convert("RGB")


def _on_white(image: Image.Image, fill: Callable[[Image.Image], Image.Image]) -> Image.Image:
    bands = image.getbands()
    image.paste((255,) * len(bands), mask=ImageChops.invert(image.getchannel("A")))  # in place
    planes = [fill(image.getchannel(band)) for band in bands[:-1]]
    return Image.merge("RGB", planes if len(planes) == 3 else planes * 3)
