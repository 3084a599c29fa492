"""Captions: a scene in English or Spanish words, in one of many phrasings.

No pixels and no tokens. Words and their order always vary; `MentionRates` decides how often a fact
is mentioned, since people leave facts out.
"""

import random
import re
from dataclasses import dataclass
from enum import StrEnum

from serve_app.demo.lexicon import ENGLISH, SPANISH, Lexicon
from serve_app.demo.scene import Figure, Scene, Size


class Language(StrEnum):
    """The two languages that the demo understands."""

    ENGLISH = "en"
    SPANISH = "es"


LEXICONS = {Language.ENGLISH: ENGLISH, Language.SPANISH: SPANISH}


@dataclass(frozen=True, slots=True)
class MentionRates:
    """How often a caption mentions each fact, from 0 to 1."""

    kind: float = 1.0
    colour: float = 1.0
    size: float = 1.0
    place: float = 1.0
    background: float = 1.0
    flourish: float = 0.0  # words that do not describe the scene


ALL = MentionRates()
AS_PEOPLE_DO = MentionRates(0.95, 0.93, 0.5, 0.8, 0.94, 0.2)


def caption(scene: Scene, language: Language, rng: random.Random, rates: MentionRates = ALL) -> str:
    """Return a caption of the scene: one line of lower-case words."""
    words = LEXICONS[language]
    if not scene.figures:
        text = words.background(scene.background, rng)
    elif len(scene.figures) == 2:
        text = _pair(scene, words, rng, rates)
    else:
        text = _single(scene, words, rng, rates)
    if rng.random() < rates.flourish:
        text = rng.choice(words.before) + text
    if rng.random() < rates.flourish:
        text += rng.choice(words.after)
    if rng.random() < rates.flourish / 4:
        text += " " + babble(rng, 2)
    tidy = re.sub(r"( ?, )+", ", ", re.sub(r"  +", " ", text)).strip(" ,")
    return words.contracted(tidy)


def babble(rng: random.Random, max_words: int = 8) -> str:
    """Return words of no language, from which training learns to ignore unknown words."""
    letters = "abcdefghijklmnopqrstuvwxyzñáéíóú0123456789'-"
    return " ".join(
        "".join(rng.choice(letters) for _ in range(rng.randrange(1, 9)))
        for _ in range(rng.randrange(1, max_words + 1))
    )


def _single(scene: Scene, words: Lexicon, rng: random.Random, rates: MentionRates) -> str:
    figure = scene.figures[0]
    place = rng.choice(words.places[figure.place]) if rng.random() < rates.place else ""
    has_background = rng.random() < rates.background
    pattern = rng.randrange(5)
    if pattern == 0:  # as tags
        background = words.bare_background(scene.background, rng) if has_background else ""
        return f"{_bare(figure, words, rng, rates)}, {background}, {place}"
    if pattern == 1 and has_background:  # background first
        background = words.background(scene.background, rng)
        return f"{background} {words.having} {_named(figure, words, rng, rates)} {place}"
    background = f"{words.upon} {words.background(scene.background, rng)}" if has_background else ""
    if pattern == 2 and has_background:
        background = f"{words.upon} {words.plain_colour(scene.background, rng)}"
    return f"{_named(figure, words, rng, rates)} {place} {background}"


def _pair(scene: Scene, words: Lexicon, rng: random.Random, rates: MentionRates) -> str:
    first, second = scene.figures
    names = [_named(figure, words, rng, rates) for figure in scene.figures]
    places = [rng.choice(words.places[figure.place]) for figure in scene.figures]
    pattern = rng.randrange(3)
    if pattern == 0:
        text = f"{names[0]} {places[0]} {words.joined} {names[1]} {places[1]}"
    elif pattern == 1:
        text = f"{names[0]} {words.relations[first.place]} {names[1]}"
    else:
        text = f"{names[1]} {words.relations[second.place]} {names[0]}"
    if rng.random() >= rates.background:
        return text
    background = words.background(scene.background, rng)
    return (
        f"{background} {words.having} {text}"
        if pattern == 0
        else f"{text} {words.upon} {background}"
    )


def _named(figure: Figure, words: Lexicon, rng: random.Random, rates: MentionRates) -> str:
    noun, feminine = _noun(figure, words, rng, rates)
    return words.article(feminine) + _described(figure, noun, feminine, words, rng, rates)


def _bare(figure: Figure, words: Lexicon, rng: random.Random, rates: MentionRates) -> str:
    noun, feminine = _noun(figure, words, rng, rates)
    return _described(figure, noun, feminine, words, rng, rates)


def _noun(
    figure: Figure, words: Lexicon, rng: random.Random, rates: MentionRates
) -> tuple[str, bool]:
    nouns = words.kinds[figure.kind] if rng.random() < rates.kind else words.any_kind
    return rng.choice(nouns), nouns[0] in words.feminine


def _described(
    figure: Figure,
    noun: str,
    feminine: bool,
    words: Lexicon,
    rng: random.Random,
    rates: MentionRates,
) -> str:
    colour = words.colour(figure.colour, feminine, rng) if rng.random() < rates.colour else ""
    size = ""
    if rng.random() < rates.size:
        size = rng.choice(words.small if figure.size is Size.SMALL else words.large)
    return words.order(noun, colour, words.agreeing(size, feminine))
