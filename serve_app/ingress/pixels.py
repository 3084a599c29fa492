"""The pixels of an opened image in RGB, on white, in another size.

Large images are worked on plane by plane, so that none is in memory twice.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageOps

from serve_app.core.diffusion.resizing import ResizeMode, fitted

Plane = Callable[[Image.Image], Image.Image]
_FILTER = Image.Resampling.LANCZOS


def resized(image: Image.Image, size: tuple[int, int], mode: ResizeMode) -> Image.Image:
    """Return the image in RGB, on white, in the size; the image itself may be closed."""

    def resize(plane: Image.Image) -> Image.Image:
        if plane.size == size:
            return plane
        match mode:
            case ResizeMode.CROP:
                return ImageOps.fit(plane, size, _FILTER)
            case ResizeMode.PAD:
                return _padded(plane, size)
            case ResizeMode.STRETCH:
                return plane.resize(size, _FILTER)

    if image.mode.startswith("I;16"):  # 16 bits of grey, low byte first: keep the high byte
        shades = np.frombuffer(image.tobytes("raw", "I;16"), "<u2")
        upper = shades.view(np.uint8)[1::2].copy()
        upper[shades == image.info.get("transparency", -1)] = 255
        return resize(Image.fromarray(upper.reshape(image.size[::-1]))).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # 16 bits a channel, which Pillow reads as 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None:
        original, image = image, image.convert("RGBA")
        original.close()
    if image.mode in ("RGBA", "LA"):
        return _on_white(image, resize)
    if image.mode in ("P", "1"):  # indices of colours can't be blended
        image = image.convert("RGB")
    return resize(image).convert("RGB")


def _on_white(image: Image.Image, resize: Plane) -> Image.Image:
    bands = image.getbands()
    image.paste((255,) * len(bands), mask=ImageChops.invert(image.getchannel("A")))  # in place
    planes = [resize(image.getchannel(band)) for band in bands[:-1]]
    return Image.merge("RGB", planes if len(planes) == 3 else planes * 3)


def _padded(plane: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a plane in the middle of a size, with the pixels of its edges repeated outwards."""
    width, height = fitted(plane.size, size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    right, bottom = left + width, top + height
    canvas = Image.new(plane.mode, size)
    canvas.paste(plane.resize((width, height), _FILTER), (left, top))
    edges = (  # of the image, and where they are repeated: the sides, then all of top and bottom
        ((left, top, left + 1, bottom), (0, top, left, bottom)),
        ((right - 1, top, right, bottom), (right, top, size[0], bottom)),
        ((0, top, size[0], top + 1), (0, 0, size[0], top)),
        ((0, bottom - 1, size[0], bottom), (0, bottom, size[0], size[1])),
    )
    for edge, (x, y, x_end, y_end) in edges:
        if x < x_end and y < y_end:
            strip = canvas.crop(edge).resize((x_end - x, y_end - y), Image.Resampling.NEAREST)
            canvas.paste(strip, (x, y))
    return canvas
