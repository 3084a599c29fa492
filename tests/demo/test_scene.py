import random

import pytest

from serve_app.demo.scene import Colour, Figure, Kind, Place, Scene, Size, invent

RED_STAR = Figure(Kind.STAR, Colour.RED, Size.LARGE, Place.LEFT)


def test_one_combination_in_ten_is_kept_out_of_training() -> None:
    every = [
        Figure(kind, colour, Size.SMALL, place)
        for kind in Kind
        for colour in Colour
        for place in Place
    ]
    share = sum(figure.kept_out for figure in every) / len(every)
    assert 0.09 < share < 0.11
    kept_out = [figure for figure in every if figure.kept_out]
    assert {f.kind for f in kept_out} == set(Kind)
    assert {f.colour for f in kept_out} == set(Colour)
    assert {f.place for f in kept_out} == set(Place)


@pytest.mark.parametrize("figures", [1, 2])
@pytest.mark.parametrize("kept_out", [True, False])
def test_a_scene_is_kept_out_of_training_only_on_request(figures: int, kept_out: bool) -> None:
    chance = random.Random(figures)
    scenes = [invent(chance, figures=figures, kept_out=kept_out) for _ in range(200)]
    assert {scene.kept_out for scene in scenes} == {kept_out}
    assert {len(scene.figures) for scene in scenes} == {figures}
    assert {figure.kind for scene in scenes for figure in scene.figures} == set(Kind)
    assert {scene.background for scene in scenes} == set(Colour)


def test_equal_chance_invents_equal_scenes() -> None:
    first, second = (
        [invent(chance, figures=1, kept_out=True) for _ in range(20)]
        for chance in (random.Random(5), random.Random(5))
    )
    assert first == second


def test_a_scene_without_shapes_is_a_background() -> None:
    assert invent(random.Random(0), figures=0, kept_out=False).figures == ()


@pytest.mark.parametrize(
    ("background", "figures", "sentence"),
    [
        (Colour.RED, (RED_STAR,), "can't be seen"),
        (Colour.BLUE, (RED_STAR,) * 3, "at most two"),
        (Colour.BLUE, (RED_STAR, RED_STAR), "left and right"),
    ],
)
def test_what_can_not_be_drawn_is_no_scene(
    background: Colour, figures: tuple[Figure, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Scene(background, figures)
