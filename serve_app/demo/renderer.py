"""Renders a scene exactly, at any size: four times too large, then averaged down.

The same scene, size and random state give the same image. `degrade` degrades an image whose
original is known.
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
TRAINED_DEGRADATIONS = ("blurred", "shrunk", "squeezed")  # that the refiner was trained on
OTHER_DEGRADATIONS = ("defocused", "grainy", "recoded")
_OVERSAMPLING = 4  # along each side
_COLOUR_SPREAD, _PLACE_SPREAD, _SIZE_SPREAD = 5, 0.02, 0.06

Outline = tuple[tuple[float, float], ...]


def _ring(reaches: tuple[float, ...], down: float = 0.0) -> Outline:
    """Return corners at equal angles, starting at the top, at the given distances."""
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


def paint(scene: Scene, rng: random.Random, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Return the scene as an RGB image of `size` (width, height).

    Colours, places and sizes vary a little at random.
    """
    width, height = size
    canvas = Image.new(
        "RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), _vary_colour(scene.background, rng)
    )
    pencil = ImageDraw.Draw(canvas)
    for figure in scene.figures:
        corners = _corners(figure, rng, size)
        pencil.polygon(
            [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in corners],
            fill=_vary_colour(figure.colour, rng),
        )
    return canvas.reduce(_OVERSAMPLING)


def degrade(image: Image.Image, way: str) -> Image.Image:
    """Return the image degraded in one of the known ways; raise `ValueError` for another one.

    Blurred and defocused are Gaussian, of radius 2 and 3; shrunk is to a third and back; squeezed
    and recoded are JPEG at quality 8 and 20; grainy is normal noise of 12 levels.
    """
    if way in ("blurred", "defocused"):
        return image.filter(ImageFilter.GaussianBlur(2.0 if way == "blurred" else 3.0))
    if way == "shrunk":
        third = (max(1, image.width // 3), max(1, image.height // 3))
        return image.resize(third, Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BICUBIC
        )
    if way in ("squeezed", "recoded"):
        squeezed = BytesIO()
        image.save(squeezed, "JPEG", quality=8 if way == "squeezed" else 20)
        return Image.open(squeezed).convert("RGB")
    if way == "grainy":
        grain = np.random.default_rng(0).normal(0, 12, (image.height, image.width, 3))
        return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    known = ", ".join(TRAINED_DEGRADATIONS + OTHER_DEGRADATIONS)
    raise ValueError(f"{way!r} is not a degradation; known: {known}")


def _vary_colour(colour: Colour, rng: random.Random) -> tuple[int, int, int]:
    r, g, b = (
        min(255, max(0, round(level + rng.uniform(-_COLOUR_SPREAD, _COLOUR_SPREAD))))
        for level in RGB[colour]
    )
    return r, g, b


def _corners(figure: Figure, rng: random.Random, size: tuple[int, int]) -> Outline:
    """Return the outline on the canvas, in pixels."""
    short = min(size)
    reach = figure.size.reach * short * (1 + rng.uniform(-_SIZE_SPREAD, _SIZE_SPREAD))
    middle = []
    for side, third in ((size[0], figure.place.column), (size[1], figure.place.row)):
        at = side * (2 * third + 1) / 6 + short * rng.uniform(-_PLACE_SPREAD, _PLACE_SPREAD)
        middle.append(min(max(at, reach + 1), side - reach - 1))
    return tuple((middle[0] + reach * x, middle[1] + reach * y) for x, y in OUTLINES[figure.kind])
