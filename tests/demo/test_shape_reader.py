import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from serve_app.demo.renderer import RGB, degrade, paint
from serve_app.demo.scene import Colour, Figure, Kind, Place, Scene, Size, invent
from serve_app.demo.shape_reader import Reading, edge_width, read

SIZES = [(128, 128), (168, 96), (96, 168)]


def reading_of(scene: Scene) -> Reading:
    figure = scene.figures[0]
    return Reading(scene.background, figure.colour, figure.place, figure.kind, figure.size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", Kind)
def test_an_exact_image_is_read_correctly(kind: Kind, size: tuple[int, int]) -> None:
    chance = random.Random(f"{kind} {size}")
    for place in Place:
        for reach in Size:
            background, colour = chance.sample(list(Colour), 2)
            scene = Scene(background, (Figure(kind, colour, reach, place),))
            picture = np.asarray(paint(scene, chance, size))
            assert read(picture) == reading_of(scene)


@pytest.mark.parametrize("way", ["blurred", "shrunk"])
def test_a_degraded_image_is_read_correctly(way: str) -> None:
    chance = random.Random(way)
    scenes = [invent(chance, figures=1, kept_out=True) for _ in range(40)]
    pictures = [np.asarray(degrade(paint(scene, chance), way)) for scene in scenes]
    assert [read(p) for p in pictures] == [reading_of(scene) for scene in scenes]


def test_noise_of_a_few_levels_changes_no_reading() -> None:
    chance, noise = random.Random(1), np.random.default_rng(1)
    for _ in range(40):
        scene = invent(chance, figures=1, kept_out=False)
        picture = np.asarray(paint(scene, chance)).astype(float)
        noisy = (picture + noise.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
        assert read(noisy) == reading_of(scene)


def test_a_plain_background_has_no_shape() -> None:
    scene = Scene(Colour.GREY, ())
    assert read(np.asarray(paint(scene, random.Random(0)))) == Reading(Colour.GREY)


def test_a_speck_is_no_shape() -> None:
    picture = np.full((128, 128, 3), 246, np.uint8)
    picture[60:64, 60:64] = (214, 39, 40)
    assert read(picture) == Reading(Colour.WHITE)


def test_another_scene_is_not_read_as_this_one() -> None:
    chance = random.Random(3)
    scenes = [invent(chance, figures=1, kept_out=False) for _ in range(100)]
    seen = [read(np.asarray(paint(scene, chance))) for scene in scenes]
    others = [reading_of(scene) for scene in scenes[1:] + scenes[:1]]
    kinds = sum(a.kind is b.kind for a, b in zip(seen, others, strict=True))
    assert kinds < 35  # one in six by chance


def test_of_two_shapes_the_larger_one_is_read() -> None:
    canvas = Image.new("RGB", (128, 128), (36, 84, 214))
    canvas.paste((214, 39, 40), (10, 10, 70, 70))
    canvas.paste((247, 214, 50), (100, 100, 116, 116))
    seen = read(np.asarray(canvas))
    assert (seen.colour, seen.kind) == (Colour.RED, Kind.SQUARE)


def test_a_second_patch_is_noticed() -> None:
    chance = random.Random(8)
    for _ in range(30):
        scene = invent(chance, figures=1, kept_out=False)
        place = scene.figures[0].place
        if place in (Place.BOTTOM_RIGHT, Place.RIGHT, Place.BOTTOM, Place.CENTRE):
            continue
        picture = paint(scene, chance)
        stray = next(c for c in Colour if c not in (scene.background, Colour.GREY))
        picture.paste(RGB[stray], (100, 100, 116, 116))
        seen = read(np.asarray(picture))
        assert not seen.alone
        assert seen.place is place


def test_an_unknown_colour_and_shape_are_none() -> None:
    picture = np.full((128, 128, 3), (70, 200, 200), np.uint8)  # not in the palette
    picture[40:44, 10:120] = 0  # a line
    picture[10:120, 60:64] = 0
    seen = read(picture)
    assert (seen.background, seen.kind) == (None, None)


@pytest.mark.parametrize("spread", [0.5, 1, 2])
def test_grain_makes_no_edge_wider_or_narrower(spread: float) -> None:
    noise = np.random.default_rng(0)
    for number in range(10):
        scene = invent(random.Random(number), figures=1, kept_out=False)
        picture = np.asarray(paint(scene, random.Random(number)))
        grainy = picture + noise.normal(0, spread, picture.shape)
        known = edge_width(picture)
        assert known is not None
        assert edge_width(grainy.clip(0, 255).astype(np.uint8)) == pytest.approx(known, abs=0.15)


def test_blur_makes_edges_wider() -> None:
    scene = invent(random.Random(1), figures=1, kept_out=False)
    picture = paint(scene, random.Random(1))
    blurred = [picture.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2)]
    widths = [edge_width(np.asarray(image)) or 0 for image in blurred]
    assert 0.5 < widths[0] < 1.3 < 2 * widths[0] < widths[1] < widths[2]


def test_without_a_shape_there_is_no_edge() -> None:
    assert edge_width(np.full((128, 128, 3), 128, np.uint8)) is None
