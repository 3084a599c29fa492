import random

import pytest

from serve_app.demo.captions import ALL, AS_PEOPLE_DO, Language, MentionRates, caption
from serve_app.demo.scene import invent
from serve_app.demo.vocabulary import demo_vocabulary

WORDS = demo_vocabulary()


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("rates", [ALL, AS_PEOPLE_DO], ids=["all", "as people do"])
def test_every_caption_that_the_demo_was_trained_on_names_something(
    language: Language, rates: MentionRates
) -> None:
    rng = random.Random(7)
    for number in range(600):
        text = caption(invent(rng, figures=number % 3, kept_out=False), language, rng, rates)
        has_noise = rates is AS_PEOPLE_DO and number % 3 == 0  # "a red background", and babble
        assert WORDS.covers(text) or has_noise, text


@pytest.mark.parametrize(
    "prompt",
    ["a cat", "un gato", "a fox in the snow", "portrait of a woman, 85mm", "a house, red", "cat 1"],
)
def test_a_prompt_of_other_things_names_nothing(prompt: str) -> None:
    assert not WORDS.covers(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        *("a red heart on a white background", "the blue background", "tres corazones verdes"),
        *("a HEART and a cat", "un fondo rojo liso", "boxes", "a picture of a plus sign"),
    ],
)
def test_a_prompt_of_shapes_or_a_plain_background_names_something(prompt: str) -> None:
    assert WORDS.covers(prompt)
