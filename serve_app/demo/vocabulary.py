"""What the demo can draw, as the words that `lexicon` trained it on. No torch."""

from collections.abc import Iterable

from serve_app.core.diffusion.vocabulary import Vocabulary, fold, words_of
from serve_app.demo.lexicon import ENGLISH, SPANISH, Lexicon

_NOT_TRAINED = "the an of in el la los las de del only solid"  # words that change no scene


def demo_vocabulary() -> Vocabulary:
    """Return the words of both languages of the demo."""
    lexicons = (ENGLISH, SPANISH)
    subjects = (fold(noun) for lexicon in lexicons for noun in _nouns(lexicon))
    scenery = (word for lexicon in lexicons for word in _scenery(lexicon))
    others = (word for lexicon in lexicons for word in _others(lexicon))
    return Vocabulary(
        subjects=tuple(subjects),
        scenery=_words(scenery),
        others=_words((*others, _NOT_TRAINED)),
        summary="circles, squares, triangles, stars, crosses and hearts in ten colours, asked for "
        "in English or Spanish",
    )


def _nouns(lexicon: Lexicon) -> Iterable[str]:
    for nouns in (*lexicon.kinds.values(), lexicon.any_kind):
        yield from nouns


def _scenery(lexicon: Lexicon) -> Iterable[str]:
    for colours in lexicon.colours.values():
        for colour in colours:
            yield from (colour, lexicon.agreeing(colour, feminine=True))


def _others(lexicon: Lexicon) -> Iterable[str]:
    for phrases in (
        *lexicon.places.values(),
        *(lexicon.small, lexicon.large, lexicon.grounds, lexicon.before, lexicon.after),
    ):
        yield from phrases
    yield from lexicon.relations.values()
    yield from lexicon.articles
    yield from (lexicon.upon, lexicon.having, lexicon.joined)


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(words_of, texts))
