"""Reads background, colour, place, kind and size of a shape from an image, by geometry alone.

Steps:

1. the background is the palette colour nearest to the median of the image's frame;
2. the shape is what differs from that median by more than 40 of 441, then what is nearer to the
   median colour of those pixels than to the background, in the largest connected patch;
3. its colour is the palette colour nearest to its median, its place the cell of a three by three
   grid that its centre of mass is in, its kind the exact outline of the same mass and centre that
   overlaps it most, its size the nearer one by mass;
4. a colour that is 90 or more from all ten is unknown, an overlap of 60 % or less (of the union) is
   no kind, and a shape is not alone if there is a second patch.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from serve_app.demo.renderer import OUTLINES, RGB
from serve_app.demo.scene import Colour, Kind, Place, Size

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Mask = npt.NDArray[np.bool_]  # (height, width)
_FRAME, _DIFFERS = 2, 40.0  # pixels; levels
_MAX_DISTANCE, _MIN_OVERLAP = 90.0, 0.6  # levels; intersection over union
_NEAR = 5  # pixels from the outline that an edge may reach
_MIN_AREA = 0.004  # of the canvas; a smaller patch is no shape
_FINE = 256  # pixels a side of the exact outlines that masses are taken from


@dataclass(frozen=True, slots=True)
class Reading:
    """What an image shows; None where it is unclear. Without a shape, only a background."""

    background: Colour | None
    colour: Colour | None = None
    place: Place | None = None
    kind: Kind | None = None
    size: Size | None = None
    alone: bool = True


def read(image: Pixels) -> Reading:
    """Return the reading of an image with at most one shape."""
    background_rgb = _frame(image)
    background = nearest(background_rgb)
    patches = _patches(image, background_rgb)
    if not patches:
        return Reading(background)
    mask = patches[0]
    height, width = mask.shape
    y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(mask))
    row, column = min(2, int(3 * y / height)), min(2, int(3 * x / width))
    likeness = {kind: _overlap(mask, kind, (x, y)) for kind in Kind}
    kind = max(likeness, key=likeness.__getitem__)
    reach = _reach(mask, kind) / min(width, height)
    return Reading(
        background,
        nearest(np.median(image[_core(mask)], axis=0)),
        list(Place)[3 * row + column],
        kind if likeness[kind] > _MIN_OVERLAP else None,
        min(Size, key=lambda size: abs(size.reach - reach)),
        len(patches) == 1,
    )


def nearest(rgb: npt.NDArray[np.float64]) -> Colour | None:
    """Return the nearest palette colour, or None if all are far; levels are from 0 to 255."""
    distance = {colour: float(np.linalg.norm(np.subtract(RGB[colour], rgb))) for colour in RGB}
    colour = min(distance, key=distance.__getitem__)
    return colour if distance[colour] < _MAX_DISTANCE else None


def _frame(image: Pixels) -> npt.NDArray[np.float64]:
    edge = np.ones(image.shape[:2], bool)
    edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    median: npt.NDArray[np.float64] = np.median(image[edge], axis=0)
    return median


def _patches(image: Pixels, background_rgb: npt.NDArray[np.float64]) -> list[Mask]:
    """Return the shape, then other patches, the largest first."""
    pixels = image.astype(np.float64)
    distance = np.linalg.norm(pixels - background_rgb, axis=2)
    rough = _patches_of(distance > _DIFFERS)
    if not rough:
        return []
    colour = np.median(pixels[_core(rough[0])], axis=0)
    shape = _patches_of(np.linalg.norm(pixels - colour, axis=2) < distance)[:1]
    beside = [patch for patch in rough if not any((patch & mask).any() for mask in shape)]
    return shape + beside


def _core(mask: Mask) -> Mask:
    """Return the mask without its outermost pixels, where colours mix, or all of a thin mask."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _patches_of(mask: Mask) -> list[Mask]:
    """Return connected patches, the largest first, without specks."""
    remaining, patches = mask.copy(), []
    while remaining.any():
        patch = np.zeros_like(remaining)
        patch[np.unravel_index(int(remaining.argmax()), remaining.shape)] = True
        while True:
            grown = remaining & _dilated(patch)
            if grown.sum() == patch.sum():
                break
            patch = grown
        remaining &= ~patch
        if patch.mean() >= _MIN_AREA:
            patches.append(patch)
    return sorted(patches, key=lambda patch: -int(patch.sum()))


def _dilated(mask: Mask) -> Mask:
    """Return the mask, grown by one pixel along the sides."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _filled(kind: Kind, side: int, middle: tuple[float, float], reach: float, finer: int) -> Mask:
    canvas = Image.new("L", (side * finer, side * finer))
    corners = [
        ((middle[0] + reach * x) * finer, (middle[1] + reach * y) * finer)
        for x, y in OUTLINES[kind]
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas.reduce(finer)) > 127


def _measures() -> dict[Kind, tuple[float, float, float]]:
    """Return for each kind at reach 1 its area, and its centre of mass relative to its middle."""
    measures = {}
    unit = _FINE / 2.5
    for kind in Kind:
        y, x = np.nonzero(_filled(kind, _FINE, (_FINE / 2, _FINE / 2), unit, 4))
        measures[kind] = (
            len(x) / unit**2,
            (float(x.mean()) + 0.5 - _FINE / 2) / unit,
            (float(y.mean()) + 0.5 - _FINE / 2) / unit,
        )
    return measures


_MEASURES = _measures()


def _reach(mask: Mask, kind: Kind) -> float:
    return sqrt(float(mask.sum()) / _MEASURES[kind][0])


def _overlap(mask: Mask, kind: Kind, centre: tuple[float, float]) -> float:
    """Return the intersection over union with the kind's exact outline of the same area."""
    _, x, y = _MEASURES[kind]
    reach = _reach(mask, kind)
    side = max(mask.shape)
    exact = _filled(kind, side, (centre[0] - x * reach, centre[1] - y * reach), reach, 4)
    exact = exact[: mask.shape[0], : mask.shape[1]]
    return float((mask & exact).sum() / (mask | exact).sum())


def contrast(image: Pixels) -> float:
    """Return the distance of shape and background colours in levels; 0 without a shape."""
    background_rgb = _frame(image)
    patches = _patches(image, background_rgb)
    if not patches:
        return 0.0
    return float(np.linalg.norm(np.median(image[_core(patches[0])], axis=0) - background_rgb))


def edge_width(image: Pixels) -> float | None:
    """Return the width of the shape's edge in pixels, or None without a shape.

    It is the area near the outline between 10 and 90 % of the difference of background and shape,
    divided by the outline's length. Grain and halos don't count: they are outside of that range, or
    far from the outline.
    """
    background_rgb = _frame(image)
    patches = _patches(image, background_rgb)
    if not patches:
        return None
    mask = patches[0]
    colour = np.median(image[_core(mask)], axis=0)
    difference = colour - background_rgb
    share = (image.astype(np.float64) - background_rgb) @ difference / (difference @ difference)
    outline = mask & ~_core(mask)
    near = outline
    for _ in range(_NEAR):
        near = _dilated(near)
    return float((near & (share > 0.1) & (share < 0.9)).sum() / outline.sum())
