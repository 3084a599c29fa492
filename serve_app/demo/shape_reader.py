"""The judge: reads background, colour, place, kind and size of a shape off a picture.

It learns nothing. Knows no captions and no networks, only how exact shapes look. Steps:

1. the background is the palette colour nearest to the median of the picture's frame;
2. the shape is what differs from that median by more than 40 of 441, then what is nearer to the
   median colour of those pixels than to the background, in the largest patch that hangs together;
3. its colour is the palette colour nearest to its median, its place the cell of a three by three
   grid that its centre of mass is in, its kind the exact outline of the same mass and centre that
   overlaps it most, its size the nearer one by mass;
4. a colour that is 90 or more from all ten is none of them, an overlap of 60 % or less (of the
   union) is no kind, and a shape is not alone when a second patch stands beside it.
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
_FARTHEST, _LEAST_ALIKE = 90.0, 0.6  # levels; intersection over union
_NEAR = 5  # pixels from the outline that an edge may reach
_LEAST = 0.004  # of the canvas: anything less is no shape
_FINE = 256  # pixels a side of the exact outlines that masses are taken from


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees; what it can't tell is None. Without a shape it sees a background."""

    background: Colour | None
    colour: Colour | None = None
    place: Place | None = None
    kind: Kind | None = None
    size: Size | None = None
    alone: bool = True


def read(picture: Pixels) -> Reading:
    """The reading of a picture with at most one shape."""
    ground = _frame(picture)
    background = nearest(ground)
    patches = _patches(picture, ground)
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
        nearest(np.median(picture[_core(mask)], axis=0)),
        list(Place)[3 * row + column],
        kind if likeness[kind] > _LEAST_ALIKE else None,
        min(Size, key=lambda size: abs(size.reach - reach)),
        len(patches) == 1,
    )


def nearest(rgb: npt.NDArray[np.float64]) -> Colour | None:
    """The palette colour at the least distance, in levels from 0 to 255; None when all are far."""
    away = {colour: float(np.linalg.norm(np.subtract(RGB[colour], rgb))) for colour in RGB}
    colour = min(away, key=away.__getitem__)
    return colour if away[colour] < _FARTHEST else None


def _frame(picture: Pixels) -> npt.NDArray[np.float64]:
    edge = np.ones(picture.shape[:2], bool)
    edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    median: npt.NDArray[np.float64] = np.median(picture[edge], axis=0)
    return median


def _patches(picture: Pixels, ground: npt.NDArray[np.float64]) -> list[Mask]:
    """The shape and whatever stands beside it, the largest first."""
    pixels = picture.astype(np.float64)
    away = np.linalg.norm(pixels - ground, axis=2)
    rough = _torn(away > _DIFFERS)
    if not rough:
        return []
    colour = np.median(pixels[_core(rough[0])], axis=0)
    shape = _torn(np.linalg.norm(pixels - colour, axis=2) < away)[:1]
    beside = [patch for patch in rough if not any((patch & mask).any() for mask in shape)]
    return shape + beside


def _core(mask: Mask) -> Mask:
    """The mask without its outermost pixel, where colours mix; all of it where that leaves none."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _torn(mask: Mask) -> list[Mask]:
    """The patches of pixels that touch along a side, the largest first; specks are left out."""
    left, patches = mask.copy(), []
    while left.any():
        patch = np.zeros_like(left)
        patch[np.unravel_index(int(left.argmax()), left.shape)] = True
        while True:
            grown = left & _grown(patch)
            if grown.sum() == patch.sum():
                break
            patch = grown
        left &= ~patch
        if patch.mean() >= _LEAST:
            patches.append(patch)
    return sorted(patches, key=lambda patch: -int(patch.sum()))


def _grown(mask: Mask) -> Mask:
    """The mask and what touches it along a side."""
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


def contrast(picture: Pixels) -> float:
    """How far the shape's colour is from the background's, in levels; 0 without a shape."""
    ground = _frame(picture)
    patches = _patches(picture, ground)
    if not patches:
        return 0.0
    return float(np.linalg.norm(np.median(picture[_core(patches[0])], axis=0) - ground))


def edge_width(picture: Pixels) -> float | None:
    """Pixels over which the shape's edge climbs from 10 to 90 % of the way between background and
    shape: those pixels, near the outline, over the outline's length. None without a shape.

    Grain and halos don't count: they lie outside of that range, or far from the outline.
    """
    ground = _frame(picture)
    patches = _patches(picture, ground)
    if not patches:
        return None
    mask = patches[0]
    colour = np.median(picture[_core(mask)], axis=0)
    way = colour - ground
    climbed = (picture.astype(np.float64) - ground) @ way / (way @ way)  # 0 outside, 1 inside
    outline = mask & ~_core(mask)
    near = outline
    for _ in range(_NEAR):
        near = _grown(near)
    return float((near & (climbed > 0.1) & (climbed < 0.9)).sum() / outline.sum())
