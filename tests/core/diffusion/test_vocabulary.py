import pytest

from serve_app.core.diffusion.vocabulary import Vocabulary, fold, words_of

WORDS = Vocabulary(
    subjects=("heart", "box", "plus sign", "cruz"),
    scenery=frozenset({"red", "blue"}),
    others=frozenset({"a", "on", "background"}),
    summary="hearts",
)


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "a heart",
            "two HEARTS!",
            "(boxes:1.3)",
            "a cat beside a heart",
            "Plus sign, plus sign",
        ),
        *("una CRUZ", "dos cruces", "héart", "red", "a blue background", "red, 50 on blue"),
    ],
)
def test_a_subject_or_scenery_alone_is_something_to_draw(prompt: str) -> None:
    assert WORDS.covers(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        *("a cat", "hearty", "sign", "a cat on a red background", "一只猫", "red 猫", "...", "42"),
        *("on a background", "plus", "heartsease"),
    ],
)
def test_all_else_is_nothing_that_the_model_knows(prompt: str) -> None:
    assert not WORDS.covers(prompt)


def test_words_are_compared_without_case_and_accents() -> None:
    assert fold("Pequeño CÍRCULO") == "pequeno circulo"
    assert words_of("un fondo {}, 3 más") == {"un", "fondo", "mas"}
