"""The input images of a request, from their files to RGB bytes of a size that the checkpoint takes.

The header is checked before anything is decoded. Decoding must not run on the event loop. A large
image is resized plane by plane, so that it is never in memory twice.
"""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.resizing import ResizeMode, cut_share
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.errors import InvalidImage
from serve_app.ingress import pixels
from serve_app.ingress.containers import jpeg, png, webp
from serve_app.ingress.containers.container import Container
from serve_app.ingress.containers.orientation import orientation_of
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.metadata.record import RECORD, prompt_in

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_800_000
MAX_SIDE = 8192
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; MAX_PIXELS is lower and refuses
RGB_BYTES = 3  # of a pixel
_NOTICEABLE_CUT = 0.01  # of an image; fitting sides to multiples of 8 mostly cuts less
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
_UPRIGHT: dict[int, Image.Transpose] = {  # by orientation: EXIF 2.3, section 4.6.4
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
    """The files that one image is made from."""

    base: InputFile


@dataclass(frozen=True, slots=True)
class LoadedInputs:
    """The files of one image, read, and the width and height that the image will have.

    `digests` are those of the files, by their names in the metadata of the image. `prompt` is what
    the base image was made from if this service made it. `warnings` are for the caller.
    """

    size: tuple[int, int]
    inputs: ImageInputs = NO_INPUTS
    digests: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def byte_count(self) -> int:
        """The bytes that the pixels take in memory."""
        return len(self.inputs.init_image or b"")


@dataclass(frozen=True, slots=True)
class BaseImage:
    """An image ready for the VAE: height * width * 3 bytes, RGB.

    `original_size` is that of the upright image in the file, and `digest` that of the file.
    `prompt` is what it was made from if this service made it.
    """

    width: int
    height: int
    original_size: tuple[int, int]
    rgb: bytes
    digest: str
    prompt: str | None


def load_inputs(
    files: InputFiles,
    number: int,
    sizes: SizeRules,
    target_size: tuple[int, int] | None = None,
    mode: ResizeMode = ResizeMode.CROP,
) -> LoadedInputs:
    """Take the files of an image; return them read as `read_image` does. Raises `InvalidImage`.

    `number` counts the images of the request from 0.
    """
    subject = f"image {number}"
    image = read_image(files.base.take(subject), subject, sizes, target_size, mode)
    return LoadedInputs(
        (image.width, image.height),
        ImageInputs(init_image=image.rgb),
        {"baseImage": image.digest},
        image.prompt,
        _resize_warnings(image, subject, mode),
    )


def read_image(
    file: bytes,
    subject: str,
    sizes: SizeRules,
    target_size: tuple[int, int] | None = None,
    mode: ResizeMode = ResizeMode.CROP,
) -> BaseImage:
    """Return the first frame in a file: upright, on white, in a legal size.

    With a `target_size`, which must be legal, the image is brought to it as `mode` says. Without
    one it keeps its own size as far as that is legal. Raises `InvalidImage` of the subject.
    """
    try:
        container = split(file)
        # closing frees megabytes of pixels at once, where the collector would be later
        with closing(Image.open(BytesIO(container.pixels), formats=FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise InvalidImage(
                    f"is too large: a side may have at most {MAX_SIDE} pixels and the image "
                    f"{MAX_PIXELS / 1e6:.1f} megapixels, got {width} x {height}",
                    subject=subject,
                )
            orientation = orientation_of(container.exif, container.xmp)
            is_rotated = orientation in _ROTATED
            upright = (height, width) if is_rotated else (width, height)
            size = target_size or sizes.fit(*upright)
            resized = pixels.resized(image, size[::-1] if is_rotated else size, mode)
            if orientation in _UPRIGHT:
                resized = resized.transpose(_UPRIGHT[orientation])
            rgb = resized.tobytes()
    except InvalidImage:
        raise
    except _DECODE_ERRORS:
        raise InvalidImage("is not a readable PNG, JPEG or WebP", subject=subject) from None
    digest = hashlib.sha256(file).hexdigest()
    return BaseImage(*size, upright, rgb, digest, prompt_in(container))


def split(file: bytes) -> Container:
    """Return a file without what its pixels don't need, so that no metadata can fail to decode."""
    if file.startswith(png.SIGNATURE):
        return png.split(file, RECORD)
    if file.startswith(jpeg.SIGNATURE):
        return jpeg.split(file)
    if webp.is_webp(file):
        return webp.split(file)
    return Container(file)


def _resize_warnings(image: BaseImage, subject: str, mode: ResizeMode) -> tuple[str, ...]:
    """Return a sentence on what was cut away, if that is enough to be noticed."""
    share = cut_share(image.original_size, (image.width, image.height))
    if mode is not ResizeMode.CROP or share < _NOTICEABLE_CUT:
        return ()
    (width, height), new = image.original_size, f"{image.width}x{image.height}"
    return (
        f"{subject} was cropped: {share:.0%} of its {width}x{height} pixels are cut away to fill "
        f"{new}; padding or stretching instead keeps all of it",
    )
