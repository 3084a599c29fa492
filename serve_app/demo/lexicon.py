"""The words of two languages for the facts of a scene, and the grammar that joins them.

`captions` builds the sentences.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serve_app.demo.scene import Colour, Kind, Place

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """One language. The first form of each entry is the most common one."""

    kinds: Mapping[Kind, Words]
    any_kind: Words
    feminine: frozenset[str]  # the first forms of feminine nouns
    colours: Mapping[Colour, Words]
    small: Words
    large: Words
    places: Mapping[Place, Words]
    relations: Mapping[Place, str]  # from the shape at this place to the other one
    grounds: Words  # with {} for the colour
    bare_grounds: Words
    upon: str
    having: str
    joined: str
    before: Words
    after: Words
    articles: tuple[str, str]  # masculine, feminine
    agreements: tuple[tuple[str, str], ...]  # endings: masculine, feminine
    contractions: tuple[tuple[str, str], ...]
    order: Callable[[str, str, str], str]  # noun, colour, size

    def article(self, feminine: bool) -> str:
        """Return the indefinite article, with a space."""
        return self.articles[feminine]

    def agreeing(self, adjective: str, feminine: bool) -> str:
        """Return the adjective with the ending of the noun's gender."""
        for masculine, ending in self.agreements:
            if feminine and adjective.endswith(masculine):
                return adjective.removesuffix(masculine) + ending
        return adjective

    def colour(self, colour: Colour, feminine: bool, rng: random.Random) -> str:
        """Return a word for the colour, in the noun's gender."""
        return self.agreeing(rng.choice(self.colours[colour]), feminine)

    def plain_colour(self, colour: Colour, rng: random.Random) -> str:
        """Return a word for the colour without a noun."""
        return self.colour(colour, False, rng)

    def background(self, colour: Colour, rng: random.Random) -> str:
        """Return words for a background."""
        return rng.choice(self.grounds).format(self.plain_colour(colour, rng))

    def bare_background(self, colour: Colour, rng: random.Random) -> str:
        """Return words for a background, as a tag."""
        return rng.choice(self.bare_grounds).format(self.plain_colour(colour, rng))

    def contracted(self, text: str) -> str:
        """Return the text with the language's contractions."""
        for words, contraction in self.contractions:
            text = re.sub(rf"\b{words}\b", contraction, text)
        return text


def _english_order(noun: str, colour: str, size: str) -> str:
    return f"{size} {colour} {noun}"


def _spanish_order(noun: str, colour: str, size: str) -> str:
    return f"{noun} {colour} {size}"


ENGLISH = Lexicon(
    kinds={
        Kind.CIRCLE: ("circle", "disc", "ball"),
        Kind.SQUARE: ("square", "box"),
        Kind.TRIANGLE: ("triangle",),
        Kind.STAR: ("star",),
        Kind.CROSS: ("cross", "plus sign"),
        Kind.HEART: ("heart",),
    },
    any_kind=("shape", "thing"),
    feminine=frozenset(),
    colours={
        Colour.RED: ("red",),
        Colour.GREEN: ("green",),
        Colour.BLUE: ("blue",),
        Colour.YELLOW: ("yellow",),
        Colour.WHITE: ("white",),
        Colour.BLACK: ("black",),
        Colour.ORANGE: ("orange",),
        Colour.PURPLE: ("purple", "violet"),
        Colour.PINK: ("pink",),
        Colour.GREY: ("grey", "gray"),
    },
    small=("small", "little", "tiny"),
    large=("large", "big", "huge"),
    places={
        Place.TOP_LEFT: ("at the top left", "in the top left corner", "in the upper left"),
        Place.TOP: ("at the top", "in the top middle"),
        Place.TOP_RIGHT: ("at the top right", "in the top right corner", "in the upper right"),
        Place.LEFT: ("on the left", "at the left"),
        Place.CENTRE: ("in the middle", "in the centre", "in the center"),
        Place.RIGHT: ("on the right", "at the right"),
        Place.BOTTOM_LEFT: ("at the bottom left", "in the bottom left corner", "in the lower left"),
        Place.BOTTOM: ("at the bottom", "in the bottom middle"),
        Place.BOTTOM_RIGHT: (
            "at the bottom right",
            "in the bottom right corner",
            "in the lower right",
        ),
    },
    relations={
        Place.LEFT: "to the left of",
        Place.RIGHT: "to the right of",
        Place.TOP: "above",
        Place.BOTTOM: "below",
    },
    grounds=("a {} background", "a plain {} background", "a {} backdrop"),
    bare_grounds=("{} background", "plain {} background"),
    upon="on",
    having="with",
    joined="and",
    before=("a picture of ", "an illustration of ", "a drawing of ", "an image of ", "a poster, "),
    after=(", flat design", ", minimalist", ", simple", ", high quality", ", clean, sharp"),
    articles=("a ", "a "),
    agreements=(),
    contractions=(("a orange", "an orange"),),
    order=_english_order,
)

SPANISH = Lexicon(
    kinds={
        Kind.CIRCLE: ("círculo", "disco", "circulo"),
        Kind.SQUARE: ("cuadrado",),
        Kind.TRIANGLE: ("triángulo", "triangulo"),
        Kind.STAR: ("estrella",),
        Kind.CROSS: ("cruz",),
        Kind.HEART: ("corazón", "corazon"),
    },
    any_kind=("figura", "forma"),
    feminine=frozenset({"estrella", "cruz", "figura"}),
    colours={
        Colour.RED: ("rojo",),
        Colour.GREEN: ("verde",),
        Colour.BLUE: ("azul",),
        Colour.YELLOW: ("amarillo",),
        Colour.WHITE: ("blanco",),
        Colour.BLACK: ("negro",),
        Colour.ORANGE: ("naranja",),
        Colour.PURPLE: ("morado", "violeta"),
        Colour.PINK: ("rosa",),
        Colour.GREY: ("gris",),
    },
    small=("pequeño", "chiquito"),
    large=("grande", "enorme"),
    places={
        Place.TOP_LEFT: ("arriba a la izquierda", "en la esquina superior izquierda"),
        Place.TOP: ("arriba", "arriba en el centro"),
        Place.TOP_RIGHT: ("arriba a la derecha", "en la esquina superior derecha"),
        Place.LEFT: ("a la izquierda", "en el lado izquierdo"),
        Place.CENTRE: ("en el centro", "en el medio"),
        Place.RIGHT: ("a la derecha", "en el lado derecho"),
        Place.BOTTOM_LEFT: ("abajo a la izquierda", "en la esquina inferior izquierda"),
        Place.BOTTOM: ("abajo", "abajo en el centro"),
        Place.BOTTOM_RIGHT: ("abajo a la derecha", "en la esquina inferior derecha"),
    },
    relations={
        Place.LEFT: "a la izquierda de",
        Place.RIGHT: "a la derecha de",
        Place.TOP: "encima de",
        Place.BOTTOM: "debajo de",
    },
    grounds=("un fondo {}", "un fondo {} liso", "fondo {}"),
    bare_grounds=("fondo {}",),
    upon="sobre",
    having="con",
    joined="y",
    before=("una imagen de ", "una ilustración de ", "un dibujo de ", "un cartel, "),
    after=(", diseño plano", ", minimalista", ", sencillo", ", alta calidad", ", nítido"),
    articles=("un ", "una "),
    agreements=(("o", "a"),),
    contractions=(),
    order=_spanish_order,
)
