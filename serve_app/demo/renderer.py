"""A scene as pixels: drawn exactly, at any size, four times too large and then averaged down.

Knows no networks and no words. `paint` with the same scene, size and chance gives the same picture;
`degrade` spoils one in a way whose original is known.
"""

import random
from io import BytesIO
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from serve_app.demo.scene import Colour, Figure, Kind, Scene

RGB: dict[Colour, tuple[int, int, int]] = {
    Colour.RED: (214, 39, 40),
    Colour.GREEN: (44, 150, 60),
    Colour.BLUE: (36, 84, 214),
    Colour.YELLOW: (247, 214, 50),
    Colour.WHITE: (246, 246, 246),
    Colour.BLACK: (20, 20, 20),
    Colour.ORANGE: (245, 130, 32),
    Colour.PURPLE: (128, 52, 168),
    Colour.PINK: (247, 150, 196),
    Colour.GREY: (128, 128, 128),
}
TAUGHT = ("blurred", "shrunk", "squeezed")  # the ways of spoiling that the refiner has seen
UNTAUGHT = ("defocused", "grainy", "recoded")
_FINER = 4  # times too large, each way
_COLOUR_SPREAD, _PLACE_SPREAD, _SIZE_SPREAD = 5, 0.02, 0.06

Outline = tuple[tuple[float, float], ...]


def _ring(reaches: tuple[float, ...], down: float = 0.0) -> Outline:
    """Corners at equal angles, from straight up, at distances that repeat."""
    corners = len(reaches)
    return tuple(
        (r * sin(2 * pi * i / corners), down - r * cos(2 * pi * i / corners))
        for i, r in enumerate(reaches)
    )


def _heart() -> Outline:
    turns = [2 * pi * i / 96 for i in range(96)]
    return tuple(
        (
            sin(a) ** 3,
            -(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)) / 16 - 0.12,
        )
        for a in turns
    )


_ARM = 0.36  # half the width of a cross's arms
OUTLINES: dict[Kind, Outline] = {  # in a square from -1 to 1, y downwards
    Kind.CIRCLE: _ring((0.98,) * 96),
    Kind.SQUARE: ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    Kind.TRIANGLE: ((0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)),
    Kind.STAR: _ring((1.06, 0.44) * 5, 0.08),
    Kind.CROSS: (
        *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
        *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
    ),
    Kind.HEART: _heart(),
}


def paint(scene: Scene, chance: random.Random, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """The scene as an RGB picture of `size` (width, height), its colours, places and sizes a
    little off, as `chance` will have it."""
    width, height = size
    canvas = Image.new("RGB", (width * _FINER, height * _FINER), _near(scene.background, chance))
    pencil = ImageDraw.Draw(canvas)
    for figure in scene.figures:
        corners = _corners(figure, chance, size)
        pencil.polygon(
            [(x * _FINER, y * _FINER) for x, y in corners], fill=_near(figure.colour, chance)
        )
    return canvas.reduce(_FINER)


def degrade(picture: Image.Image, way: str) -> Image.Image:
    """The picture spoiled in one of the ways of `TAUGHT` and `UNTAUGHT`.

    Blurred and defocused are Gaussian, of radius 2 and 3; shrunk is to a third and back; squeezed
    and recoded are JPEG at quality 8 and 20; grainy is normal noise of 12 levels.
    """
    if way in ("blurred", "defocused"):
        return picture.filter(ImageFilter.GaussianBlur(2.0 if way == "blurred" else 3.0))
    if way == "shrunk":
        third = (max(1, picture.width // 3), max(1, picture.height // 3))
        return picture.resize(third, Image.Resampling.BILINEAR).resize(
            picture.size, Image.Resampling.BICUBIC
        )
    if way in ("squeezed", "recoded"):
        squeezed = BytesIO()
        picture.save(squeezed, "JPEG", quality=8 if way == "squeezed" else 20)
        return Image.open(squeezed).convert("RGB")
    if way == "grainy":
        grain = np.random.default_rng(0).normal(0, 12, (picture.height, picture.width, 3))
        return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    raise ValueError(f"{way!r} is no way to spoil a picture: {', '.join(TAUGHT + UNTAUGHT)}")


def _near(colour: Colour, chance: random.Random) -> tuple[int, int, int]:
    r, g, b = (
        min(255, max(0, round(level + chance.uniform(-_COLOUR_SPREAD, _COLOUR_SPREAD))))
        for level in RGB[colour]
    )
    return r, g, b


def _corners(figure: Figure, chance: random.Random, size: tuple[int, int]) -> Outline:
    """The outline on the canvas, in pixels."""
    short = min(size)
    reach = figure.size.reach * short * (1 + chance.uniform(-_SIZE_SPREAD, _SIZE_SPREAD))
    middle = []
    for side, third in ((size[0], figure.place.column), (size[1], figure.place.row)):
        at = side * (2 * third + 1) / 6 + short * chance.uniform(-_PLACE_SPREAD, _PLACE_SPREAD)
        middle.append(min(max(at, reach + 1), side - reach - 1))
    return tuple((middle[0] + reach * x, middle[1] + reach * y) for x, y in OUTLINES[figure.kind])
