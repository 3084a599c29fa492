"""How an image is brought to a size of another ratio, and how much of it that costs."""

from enum import StrEnum

Size = tuple[int, int]  # width, height in pixels


class ResizeMode(StrEnum):
    """What becomes of an image whose ratio is not that of its new size.

    The same choices as AUTOMATIC1111's `resize_mode` 1, 2 and 0.
    """

    CROP = "crop"  # it fills the size, and what reaches beyond is cut away
    PAD = "pad"  # it fits into the size, and its edges are continued
    STRETCH = "stretch"  # each side is scaled by itself


def cut_share(image: Size, size: Size) -> float:
    """Return the share of an image, 0 to 1, that is cut away where it fills a size."""
    (width, height), (new_width, new_height) = image, size
    ratio = (width * new_height) / (height * new_width)
    return 1 - min(ratio, 1 / ratio)


def fitted(image: Size, size: Size) -> Size:
    """Return the largest size of an image's own ratio within a size, at least one pixel a side."""
    (width, height), (new_width, new_height) = image, size
    scale = min(new_width / width, new_height / height)
    return (
        min(max(round(width * scale), 1), new_width),
        min(max(round(height * scale), 1), new_height),
    )
