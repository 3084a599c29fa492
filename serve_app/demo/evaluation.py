"""The exam: scenes that training never saw, drawn by the service's own engine, read by the judge.

Knows no tables and no HTTP: questions in, marks out. A question's scene, words and seed follow from
its number.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.demo.captions import ALL, Language, MentionRates, caption
from serve_app.demo.scene import Colour, Figure, Kind, Place, Scene, Size, invent
from serve_app.demo.shape_reader import Pixels, Reading, read

STEPS, GUIDANCE, HANDOFF, SIDE = 20, 6.9, 0.8, 128
Draw = Callable[[Sequence[ImageSpec]], Sequence[Pixels]]


@dataclass(frozen=True, slots=True)
class Question:
    """A scene to be drawn. With one shape, training never showed its kind in its colour there."""

    scene: Scene
    seed: int
    number: int

    @property
    def figure(self) -> Figure:
        """The first shape."""
        return self.scene.figures[0]

    @property
    def family(self) -> tuple[Kind, Colour, Place]:
        """What was kept out of training; questions of one family hang together."""
        return self.figure.kind, self.figure.colour, self.figure.place

    def prompt(self, language: Language = Language.ENGLISH, told: MentionRates = ALL) -> str:
        """The scene in words; the same each time."""
        return caption(self.scene, language, random.Random(f"words {self.number}"), told)

    def spec(self, prompt: str, *, handoff: float = 1.0, guidance: float = GUIDANCE) -> ImageSpec:
        """What is asked of the engine."""
        return ImageSpec(
            prompt=prompt,
            seed=self.seed,
            width=SIDE,
            height=SIDE,
            steps=STEPS,
            guidance=guidance,
            handoff=handoff,
        )


def questions(count: int, first: int = 0) -> list[Question]:
    """Questions `first` and following, each of another scene with one shape while there are any:
    972 are kept out."""
    scenes = _kept_out()
    return [
        Question(
            scenes[number % len(scenes)], random.Random(f"exam {number}").getrandbits(32), number
        )
        for number in range(first, first + count)
    ]


def pairs(count: int) -> list[Question]:
    """Questions of two shapes, one of them at least kept out of training."""
    asked = []
    for number in range(count):
        chance = random.Random(f"pair {number}")
        scene = invent(chance, figures=2, kept_out=True)
        asked.append(Question(scene, chance.getrandbits(32), number))
    return asked


@cache
def _kept_out() -> list[Scene]:
    figures = [Figure(*facts) for facts in product(Kind, Colour, Size, Place)]
    scenes = [
        Scene(background, (figure,))
        for figure, background in product(figures, Colour)
        if figure.kept_out and figure.colour is not background
    ]
    random.Random("exam").shuffle(scenes)
    return scenes


@dataclass(frozen=True, slots=True)
class Scores:
    """What of one picture is as it was asked for."""

    background: bool
    colour: bool
    place: bool
    kind: bool
    size: bool
    alone: bool  # nothing stands beside the shape
    large: bool  # whether the shape was asked to be

    @property
    def all(self) -> bool:
        """Whether everything is."""
        facts = (self.background, self.colour, self.place, self.kind, self.size, self.alone)
        return all(facts)


def score(picture: Pixels, scene: Scene) -> Scores:
    """The marks of a picture of a scene with one shape."""
    seen, figure = read(picture), scene.figures[0]
    return Scores(
        background=seen.background is scene.background,
        colour=seen.colour is figure.colour,
        place=seen.place is figure.place,
        kind=seen.kind is figure.kind,
        size=seen.size is figure.size,
        alone=seen.alone,
        large=figure.size is Size.LARGE,
    )


def score_pair(picture: Pixels, scene: Scene) -> bool:
    """Whether each half of a picture of two shapes shows its own kind in its own colour, on the
    right background."""
    axis = 1 if scene.figures[0].place is Place.LEFT else 0
    halves = np.split(picture, [picture.shape[axis] // 2], axis=axis)
    return all(
        (seen.background, seen.colour, seen.kind) == (scene.background, figure.colour, figure.kind)
        for seen, figure in zip(map(read, halves), scene.figures, strict=True)
    )


def shuffled(asked: Sequence[Question]) -> list[Scene]:
    """The scene of another question for each: what chance alone would get right."""
    order = list(asked)
    random.Random("shuffled").shuffle(order)
    following = dict(zip((q.number for q in order), order[1:] + order[:1], strict=True))
    return [following[question.number].scene for question in asked]


@dataclass(frozen=True, slots=True)
class Avoidance:
    """A shape whose prompt tells no colour, drawn thrice from one seed; `plain` shows a colour."""

    plain: Reading
    against_own: Reading  # the negative prompt names the plain picture's colour
    against_other: Reading  # or one that it does not have

    @property
    def kept(self) -> tuple[bool, bool]:
        """Whether the shape still has its colour when it is named, and when another is."""
        own, other = self.against_own.colour, self.against_other.colour
        return own is self.plain.colour, other is self.plain.colour


def avoid(asked: Sequence[Question], draw: Draw) -> list[Avoidance]:
    """What a negative prompt does to the colour of a shape; pictures without one are left out."""
    untold = replace(ALL, colour=0.0)
    specs = [q.spec(q.prompt(told=untold)) for q in asked]
    plain = [(q, spec, read(p)) for q, spec, p in zip(asked, specs, draw(specs), strict=True)]
    plain = [(q, spec, seen) for q, spec, seen in plain if seen.colour is not None]
    own = [
        replace(spec, negative_prompt=f"{seen.colour} {q.figure.kind}") for q, spec, seen in plain
    ]
    other = [
        replace(spec, negative_prompt=f"{_another(seen)} {q.figure.kind}")
        for q, spec, seen in plain
    ]
    rows = zip(plain, draw(own), draw(other), strict=True)
    return [Avoidance(seen, read(mine), read(else_)) for (_, _, seen), mine, else_ in rows]


def _another(seen: Reading) -> Colour:
    return next(c for c in Colour if c not in (seen.colour, seen.background))
