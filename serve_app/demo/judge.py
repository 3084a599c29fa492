"""The judge: reads background, colour, place, kind and size of a shape off a picture.

It learns nothing. Knows no captions and no networks, only how exact shapes look. Steps:

1. the background is the palette colour nearest to the median of the picture's frame;
2. the shape is what differs from that median by more than 40 of 441, then what is nearer to the
   median colour of those pixels than to the background, in the largest patch that hangs together;
3. its colour is the palette colour nearest to its median, its place the cell of a three by three
   grid that its centre of mass is in, its kind the exact outline of the same mass and centre that
   overlaps it most, its size the nearer one by mass.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from serve_app.demo.painting import OUTLINES, RGB
from serve_app.demo.scene import Colour, Kind, Place, Size

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Mask = npt.NDArray[np.bool_]  # (height, width)
_FRAME, _DIFFERS = 2, 40.0
_LEAST = 0.004  # of the canvas: anything less is no shape
_FINE = 256  # pixels a side of the exact outlines that masses are taken from


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees. Without a shape only the background is there."""

    background: Colour
    colour: Colour | None = None
    place: Place | None = None
    kind: Kind | None = None
    size: Size | None = None


def read(picture: Pixels) -> Reading:
    """The reading of a picture with at most one shape."""
    ground = _frame(picture)
    background = nearest(ground)
    mask = _shape(picture, ground)
    if mask is None:
        return Reading(background)
    height, width = mask.shape
    y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(mask))
    row, column = min(2, int(3 * y / height)), min(2, int(3 * x / width))
    kind = max(Kind, key=lambda k: _overlap(mask, k, (x, y)))
    reach = _reach(mask, kind) / min(width, height)
    return Reading(
        background,
        nearest(np.median(picture[_core(mask)], axis=0)),
        list(Place)[3 * row + column],
        kind,
        min(Size, key=lambda size: abs(size.reach - reach)),
    )


def nearest(rgb: npt.NDArray[np.float64]) -> Colour:
    """The palette colour at the least distance, levels from 0 to 255."""
    return min(RGB, key=lambda colour: float(np.linalg.norm(np.subtract(RGB[colour], rgb))))


def _frame(picture: Pixels) -> npt.NDArray[np.float64]:
    edge = np.ones(picture.shape[:2], bool)
    edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    median: npt.NDArray[np.float64] = np.median(picture[edge], axis=0)
    return median


def _shape(picture: Pixels, ground: npt.NDArray[np.float64]) -> Mask | None:
    pixels = picture.astype(np.float64)
    away = np.linalg.norm(pixels - ground, axis=2)
    rough = _largest_patch(away > _DIFFERS)
    if rough.mean() < _LEAST:
        return None
    colour = np.median(pixels[_core(rough)], axis=0)
    mask = _largest_patch(np.linalg.norm(pixels - colour, axis=2) < away)
    return mask if mask.mean() >= _LEAST else None


def _core(mask: Mask) -> Mask:
    """The mask without its outermost pixel, where colours mix; all of it where that leaves none."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _largest_patch(mask: Mask) -> Mask:
    """The largest patch of pixels that touch along a side."""
    left, best = mask.copy(), np.zeros_like(mask)
    while left.sum() > best.sum():
        seed = np.unravel_index(int(left.argmax()), left.shape)
        patch = np.zeros_like(left)
        patch[seed] = True
        while True:
            padded = np.pad(patch, 1)
            grown = left & (
                patch | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            )
            if grown.sum() == patch.sum():
                break
            patch = grown
        left &= ~patch
        if patch.sum() > best.sum():
            best = patch
    return best


def _filled(kind: Kind, side: int, middle: tuple[float, float], reach: float, finer: int) -> Mask:
    canvas = Image.new("L", (side * finer, side * finer))
    corners = [
        ((middle[0] + reach * x) * finer, (middle[1] + reach * y) * finer)
        for x, y in OUTLINES[kind]
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas.reduce(finer)) > 127


def _measures() -> dict[Kind, tuple[float, float, float]]:
    """Of each kind at reach 1: its mass, and where its centre of mass is from its middle."""
    found = {}
    unit = _FINE / 2.5
    for kind in Kind:
        y, x = np.nonzero(_filled(kind, _FINE, (_FINE / 2, _FINE / 2), unit, 4))
        found[kind] = (
            len(x) / unit**2,
            (float(x.mean()) + 0.5 - _FINE / 2) / unit,
            (float(y.mean()) + 0.5 - _FINE / 2) / unit,
        )
    return found


_MEASURES = _measures()


def _reach(mask: Mask, kind: Kind) -> float:
    return sqrt(float(mask.sum()) / _MEASURES[kind][0])


def _overlap(mask: Mask, kind: Kind, centre: tuple[float, float]) -> float:
    """Intersection over union with the kind's exact outline of the same mass and centre."""
    _, x, y = _MEASURES[kind]
    reach = _reach(mask, kind)
    side = max(mask.shape)
    exact = _filled(kind, side, (centre[0] - x * reach, centre[1] - y * reach), reach, 4)
    exact = exact[: mask.shape[0], : mask.shape[1]]
    return float((mask & exact).sum() / (mask | exact).sum())
