import random

import pytest

from serve_app.demo.captions import ALL, AS_PEOPLE_DO, Language, MentionRates, babble, caption
from serve_app.demo.scene import Colour, Figure, Kind, Place, Scene, Size, invent

STAR = Scene(Colour.WHITE, (Figure(Kind.STAR, Colour.YELLOW, Size.SMALL, Place.TOP_LEFT),))
PAIR = Scene(
    Colour.ORANGE,
    (
        Figure(Kind.CROSS, Colour.RED, Size.LARGE, Place.TOP),
        Figure(Kind.CIRCLE, Colour.BLACK, Size.SMALL, Place.BOTTOM),
    ),
)


def ways(scene: Scene, language: Language, rates: MentionRates = ALL) -> set[str]:
    return {caption(scene, language, random.Random(i), rates) for i in range(400)}


def test_a_scene_has_many_captions() -> None:
    assert "a small yellow star at the top left on a white background" in ways(
        STAR, Language.ENGLISH
    )
    assert "una estrella amarilla pequeña arriba a la izquierda sobre un fondo blanco" in ways(
        STAR, Language.SPANISH
    )
    assert all(len(ways(STAR, language)) > 20 for language in Language)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (Language.ENGLISH, ("star", "yellow", "white", "left")),
        (Language.SPANISH, ("estrella", "amarilla", "blanco", "izquierda")),
    ],
)
def test_a_full_caption_leaves_nothing_out(language: Language, words: tuple[str, ...]) -> None:
    for text in ways(STAR, language):
        words_of_text = text.replace("izquierdo", "izquierda")
        assert all(word in words_of_text for word in words), text


def test_adjectives_agree_and_articles_fit() -> None:
    assert any("una cruz roja" in text for text in ways(PAIR, Language.SPANISH))
    for text in ways(PAIR, Language.SPANISH):
        assert not any(part in text for part in ("rojo", "un cruz")), text
    for text in ways(PAIR, Language.ENGLISH):
        assert "a orange" not in text, text


def test_of_two_shapes_each_may_come_first() -> None:
    texts = ways(PAIR, Language.ENGLISH)
    assert any("cross above a" in text for text in texts)
    assert any("below a" in text and text.index("black") < text.index("red") for text in texts)


@pytest.mark.parametrize("language", Language)
def test_captions_are_tidy(language: Language) -> None:
    chance = random.Random(2)
    for _ in range(2000):
        scene = invent(chance, figures=chance.randrange(3), kept_out=False)
        text = caption(scene, language, chance, AS_PEOPLE_DO)
        assert text
        assert text == text.strip(" ,")
        assert not any(part in text for part in ("  ", " ,", ",,")), text


def test_people_leave_things_out() -> None:
    texts = ways(STAR, Language.ENGLISH, AS_PEOPLE_DO)
    assert any("yellow" not in text for text in texts)
    assert any("background" not in text and "white" not in text for text in texts)


def test_babble_says_nothing_of_the_palette() -> None:
    words = {word for i in range(300) for word in babble(random.Random(i)).split()}
    assert not words & {str(colour) for colour in Colour}
