"""A scene in words, in English or Spanish, said in one of many ways.

Knows no pixels and no tokens. Words and their order always vary; `Told` says how often a fact is
left out, as people do.
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
    """How often each fact is told."""

    kind: float = 1.0
    colour: float = 1.0
    size: float = 1.0
    place: float = 1.0
    background: float = 1.0
    flourish: float = 0.0  # words that say nothing of the scene


ALL = MentionRates()
AS_PEOPLE_DO = MentionRates(0.95, 0.93, 0.5, 0.8, 0.94, 0.2)


def caption(
    scene: Scene, language: Language, chance: random.Random, told: MentionRates = ALL
) -> str:
    """The scene in one line of lower-case words."""
    words = LEXICONS[language]
    if not scene.figures:
        text = words.background(scene.background, chance)
    elif len(scene.figures) == 2:
        text = _pair(scene, words, chance, told)
    else:
        text = _single(scene, words, chance, told)
    if chance.random() < told.flourish:
        text = chance.choice(words.before) + text
    if chance.random() < told.flourish:
        text += chance.choice(words.after)
    if chance.random() < told.flourish / 4:
        text += " " + babble(chance, 2)
    tidy = re.sub(r"( ?, )+", ", ", re.sub(r"  +", " ", text)).strip(" ,")
    return words.contracted(tidy)


def babble(chance: random.Random, most: int = 8) -> str:
    """Words of no language, so that unknown ones are taken for what they are."""
    letters = "abcdefghijklmnopqrstuvwxyzñáéíóú0123456789'-"
    return " ".join(
        "".join(chance.choice(letters) for _ in range(chance.randrange(1, 9)))
        for _ in range(chance.randrange(1, most + 1))
    )


def _single(scene: Scene, words: Lexicon, chance: random.Random, told: MentionRates) -> str:
    figure = scene.figures[0]
    place = chance.choice(words.places[figure.place]) if chance.random() < told.place else ""
    tells_ground = chance.random() < told.background
    way = chance.randrange(5)
    if way == 0:  # as tags
        ground = words.bare_background(scene.background, chance) if tells_ground else ""
        return f"{_bare(figure, words, chance, told)}, {ground}, {place}"
    if way == 1 and tells_ground:  # background first
        ground = words.background(scene.background, chance)
        return f"{ground} {words.having} {_named(figure, words, chance, told)} {place}"
    ground = f"{words.upon} {words.background(scene.background, chance)}" if tells_ground else ""
    if way == 2 and tells_ground:
        ground = f"{words.upon} {words.plain_colour(scene.background, chance)}"
    return f"{_named(figure, words, chance, told)} {place} {ground}"


def _pair(scene: Scene, words: Lexicon, chance: random.Random, told: MentionRates) -> str:
    first, second = scene.figures
    names = [_named(figure, words, chance, told) for figure in scene.figures]
    places = [chance.choice(words.places[figure.place]) for figure in scene.figures]
    way = chance.randrange(3)
    if way == 0:
        text = f"{names[0]} {places[0]} {words.joined} {names[1]} {places[1]}"
    elif way == 1:
        text = f"{names[0]} {words.relations[first.place]} {names[1]}"
    else:
        text = f"{names[1]} {words.relations[second.place]} {names[0]}"
    if chance.random() >= told.background:
        return text
    ground = words.background(scene.background, chance)
    return f"{ground} {words.having} {text}" if way == 0 else f"{text} {words.upon} {ground}"


def _named(figure: Figure, words: Lexicon, chance: random.Random, told: MentionRates) -> str:
    noun, feminine = _noun(figure, words, chance, told)
    return words.article(feminine) + _described(figure, noun, feminine, words, chance, told)


def _bare(figure: Figure, words: Lexicon, chance: random.Random, told: MentionRates) -> str:
    noun, feminine = _noun(figure, words, chance, told)
    return _described(figure, noun, feminine, words, chance, told)


def _noun(
    figure: Figure, words: Lexicon, chance: random.Random, told: MentionRates
) -> tuple[str, bool]:
    nouns = words.kinds[figure.kind] if chance.random() < told.kind else words.any_kind
    return chance.choice(nouns), nouns[0] in words.feminine


def _described(
    figure: Figure,
    noun: str,
    feminine: bool,
    words: Lexicon,
    chance: random.Random,
    told: MentionRates,
) -> str:
    colour = words.colour(figure.colour, feminine, chance) if chance.random() < told.colour else ""
    size = ""
    if chance.random() < told.size:
        size = chance.choice(words.small if figure.size is Size.SMALL else words.large)
    return words.order(noun, colour, words.agreeing(size, feminine))
