"""Scenes that the demo checkpoint can draw: one or two plain shapes on a plain background.

`invent` draws a random scene. `kept_out` says which combinations training never sees, so that the
evaluation can use them.
"""

import random
from dataclasses import dataclass
from enum import StrEnum


class Colour(StrEnum):
    """The ten colours, of shapes and of backgrounds."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    WHITE = "white"
    BLACK = "black"
    ORANGE = "orange"
    PURPLE = "purple"
    PINK = "pink"
    GREY = "grey"


class Kind(StrEnum):
    """The six shapes."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    CROSS = "cross"
    HEART = "heart"


class Size(StrEnum):
    """Half the side of the square that a shape fits in, as a share of the canvas's shorter side."""

    SMALL = "small"
    LARGE = "large"

    @property
    def reach(self) -> float:
        """The share of the canvas."""
        return 0.14 if self is Size.SMALL else 0.24


class Place(StrEnum):
    """Nine places, in a grid of three by three."""

    TOP_LEFT = "top left"
    TOP = "top"
    TOP_RIGHT = "top right"
    LEFT = "left"
    CENTRE = "centre"
    RIGHT = "right"
    BOTTOM_LEFT = "bottom left"
    BOTTOM = "bottom"
    BOTTOM_RIGHT = "bottom right"

    @property
    def row(self) -> int:
        """The row in the grid, from 0 at the top."""
        return list(Place).index(self) // 3

    @property
    def column(self) -> int:
        """The column in the grid, from 0 at the left."""
        return list(Place).index(self) % 3


PAIRED_PLACES = ((Place.LEFT, Place.RIGHT), (Place.TOP, Place.BOTTOM))  # of two shapes


@dataclass(frozen=True, slots=True)
class Figure:
    """One shape of a scene."""

    kind: Kind
    colour: Colour
    size: Size
    place: Place

    @property
    def kept_out(self) -> bool:
        """Whether training never shows this kind in this colour at this place: one in ten."""
        ranks = (
            list(Kind).index(self.kind),
            3 * list(Colour).index(self.colour),
            7 * list(Place).index(self.place),
        )
        return sum(ranks) % 10 == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and up to two shapes, side by side or one above the other.

    No shape has the colour of the background. Raises `ValueError` for any other scene.
    """

    background: Colour
    figures: tuple[Figure, ...]

    def __post_init__(self) -> None:
        if len(self.figures) > 2:
            raise ValueError(f"a scene has at most two shapes, not {len(self.figures)}")
        if any(figure.colour is self.background for figure in self.figures):
            raise ValueError(f"a {self.background} shape can't be seen on {self.background}")
        if len(self.figures) == 2 and tuple(f.place for f in self.figures) not in PAIRED_PLACES:
            raise ValueError("two shapes stand left and right, or above each other")

    @property
    def kept_out(self) -> bool:
        """Whether training never shows this scene."""
        return any(figure.kept_out for figure in self.figures)


def invent(rng: random.Random, *, figures: int, kept_out: bool) -> Scene:
    """Return a random scene of `figures` shapes, which training sees or never sees.

    Every fact is drawn uniformly. A scene without shapes is never kept out.
    """
    while True:
        background = rng.choice(list(Colour))
        others = [colour for colour in Colour if colour is not background]
        places = rng.choice(PAIRED_PLACES) if figures == 2 else (rng.choice(list(Place)),)
        scene = Scene(
            background,
            tuple(
                Figure(
                    rng.choice(list(Kind)),
                    rng.choice(others),
                    rng.choice(list(Size)),
                    place,
                )
                for place in places[:figures]
            ),
        )
        if scene.kept_out is kept_out or not figures:
            return scene
