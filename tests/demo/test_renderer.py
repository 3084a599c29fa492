import random

import numpy as np
import pytest

from serve_app.demo.renderer import RGB, degrade, paint
from serve_app.demo.scene import Colour, Figure, Kind, Place, Scene, Size, invent

SCENE = Scene(Colour.BLUE, (Figure(Kind.HEART, Colour.RED, Size.LARGE, Place.BOTTOM_RIGHT),))


def test_equal_chance_paints_equal_pictures_and_another_one_another() -> None:
    first, second, third = (paint(SCENE, random.Random(seed)).tobytes() for seed in (1, 1, 2))
    assert first == second != third


@pytest.mark.parametrize("size", [(128, 128), (168, 96), (96, 168), (64, 64)])
def test_every_shape_lies_whole_inside_the_picture(size: tuple[int, int]) -> None:
    chance = random.Random(0)
    for _ in range(100):
        scene = invent(chance, figures=1, kept_out=False)
        picture = np.asarray(paint(scene, chance, size)).astype(int)
        assert picture.shape == (size[1], size[0], 3)
        rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.abs(rim - RGB[scene.background]).max() <= 64  # a quarter of a pixel


def test_a_shape_covers_what_its_size_says() -> None:
    square = Scene(Colour.WHITE, (Figure(Kind.SQUARE, Colour.BLACK, Size.LARGE, Place.CENTRE),))
    dark = np.asarray(paint(square, random.Random(4))).mean(axis=2) < 128
    side = 2 * 0.88 * 0.24  # of the canvas
    assert dark.mean() == pytest.approx(side**2, rel=0.15)


@pytest.mark.parametrize("way", ["blurred", "shrunk", "squeezed"])
def test_spoiling_keeps_the_size_and_loses_detail(way: str) -> None:
    picture = paint(SCENE, random.Random(0))
    spoiled = degrade(picture, way)
    assert spoiled.size == picture.size
    off = np.asarray(spoiled).astype(float) - np.asarray(picture)
    assert 1 < np.sqrt((off**2).mean()) < 40


def test_an_unknown_way_of_spoiling_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="blurred, shrunk, squeezed"):
        degrade(paint(SCENE, random.Random(0)), "eaten")
