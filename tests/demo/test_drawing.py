"""What the demo draws means something. `bench demo` measures; here is a bound that a bad checkpoint
or a broken engine can't reach, on few pictures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.captions import Language
from serve_app.demo.evaluation import HANDOFF, Scores, avoid, questions, score, shuffled
from serve_app.demo.shape_reader import Pixels, contrast
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import open_device

QUESTIONS = questions(24, first=5000)
Draw = Callable[[Sequence[ImageSpec]], list[Pixels]]


@pytest.fixture(scope="module")
def draw(checkpoints: dict[Stage, Checkpoint]) -> Draw:
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=2)
    return LocalPipeline(list(checkpoints.values()), device, images=4).generate


@pytest.fixture(scope="module")
def english(draw: Draw) -> list[Pixels]:
    return draw([q.spec(q.prompt()) for q in QUESTIONS])


def share(marks: Sequence[Scores], fact: str) -> float:
    return float(np.mean([getattr(scores, fact) for scores in marks]))


def marks_of(pictures: Sequence[Pixels]) -> list[Scores]:
    exam = QUESTIONS[: len(pictures)]
    return [score(picture, q.scene) for picture, q in zip(pictures, exam, strict=True)]


def test_unseen_prompts_are_drawn_as_they_say(english: list[Pixels]) -> None:
    marks = marks_of(english)
    assert share(marks, "background") >= 0.9
    assert share(marks, "colour") >= 0.9
    assert share(marks, "place") >= 0.85
    assert share(marks, "kind") >= 0.6


def test_and_not_as_other_prompts_say(english: list[Pixels]) -> None:
    pairs = zip(english, shuffled(QUESTIONS), strict=True)
    marks = [score(picture, scene) for picture, scene in pairs]
    assert share(marks, "background") <= 0.4
    assert share(marks, "colour") <= 0.4
    assert share(marks, "place") <= 0.4
    assert share(marks, "kind") <= 0.5


def test_spanish_is_understood_as_well(draw: Draw) -> None:
    marks = marks_of(draw([q.spec(q.prompt(Language.SPANISH)) for q in QUESTIONS[:12]]))
    assert share(marks, "background") >= 0.9
    assert share(marks, "colour") >= 0.9
    assert share(marks, "place") >= 0.85


def test_the_refiner_keeps_what_base_has_drawn(draw: Draw) -> None:
    marks = marks_of(draw([q.spec(q.prompt(), handoff=HANDOFF) for q in QUESTIONS[:12]]))
    assert share(marks, "background") >= 0.9


@pytest.mark.long
def test_guidance_sets_shapes_off_from_their_background(draw: Draw, english: list[Pixels]) -> None:
    unguided = draw([q.spec(q.prompt(), guidance=1.0) for q in QUESTIONS])
    farther = [contrast(b) - contrast(a) for a, b in zip(unguided, english, strict=True)]
    assert np.mean(farther) > 5
    assert share(marks_of(english), "all") >= share(marks_of(unguided), "all")


@pytest.mark.long
def test_a_negative_prompt_drives_a_colour_away(draw: Draw) -> None:
    own, other = zip(*(row.kept for row in avoid(QUESTIONS, draw)), strict=True)
    assert len(own) >= 18
    assert sum(own) <= sum(other) - 3


def test_another_seed_is_another_picture_of_the_same(draw: Draw) -> None:
    question = QUESTIONS[0]
    spec = question.spec(question.prompt())
    first, again, other = draw([spec, spec, replace(spec, seed=spec.seed ^ 1)])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert score(other, question.scene).background
