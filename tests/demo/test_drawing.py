"""What the demo draws: bounds on a few images that a bad checkpoint or a broken engine fails.

`aura bench demo` measures the quality itself.
"""

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

# The record of pictures holds the demo to its bytes; these hold a new checkpoint to its prompts.
pytestmark = pytest.mark.long

QUESTIONS = questions(24, first=5000)
Draw = Callable[[Sequence[ImageSpec]], list[Pixels]]


@pytest.fixture(scope="module")
def draw(checkpoints: dict[Stage, Checkpoint]) -> Draw:
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=2)
    return LocalPipeline(list(checkpoints.values()), device, images=4).generate


@pytest.fixture(scope="module")
def english(draw: Draw) -> list[Pixels]:
    return draw([q.spec(q.prompt()) for q in QUESTIONS])


def share(scores: Sequence[Scores], fact: str) -> float:
    return float(np.mean([getattr(row, fact) for row in scores]))


def scores_of(images: Sequence[Pixels]) -> list[Scores]:
    exam = QUESTIONS[: len(images)]
    return [score(image, q.scene) for image, q in zip(images, exam, strict=True)]


def test_images_are_as_their_held_out_prompts_say(english: list[Pixels]) -> None:
    scores = scores_of(english)
    assert share(scores, "background") >= 0.9
    assert share(scores, "colour") >= 0.9
    assert share(scores, "place") >= 0.85
    assert share(scores, "kind") >= 0.6


def test_images_are_not_as_other_prompts_say(english: list[Pixels]) -> None:
    pairs = zip(english, shuffled(QUESTIONS), strict=True)
    scores = [score(image, scene) for image, scene in pairs]
    assert share(scores, "background") <= 0.4
    assert share(scores, "colour") <= 0.4
    assert share(scores, "place") <= 0.4
    assert share(scores, "kind") <= 0.5


def test_spanish_is_understood_as_well(draw: Draw) -> None:
    scores = scores_of(draw([q.spec(q.prompt(Language.SPANISH)) for q in QUESTIONS[:12]]))
    assert share(scores, "background") >= 0.9
    assert share(scores, "colour") >= 0.9
    assert share(scores, "place") >= 0.85


def test_the_refiner_keeps_what_base_drew(draw: Draw) -> None:
    scores = scores_of(draw([q.spec(q.prompt(), handoff=HANDOFF) for q in QUESTIONS[:12]]))
    assert share(scores, "background") >= 0.9


def test_guidance_raises_the_contrast_of_shape_and_background(
    draw: Draw, english: list[Pixels]
) -> None:
    unguided = draw([q.spec(q.prompt(), guidance=1.0) for q in QUESTIONS])
    farther = [contrast(b) - contrast(a) for a, b in zip(unguided, english, strict=True)]
    assert np.mean(farther) > 5
    assert share(scores_of(english), "all") >= share(scores_of(unguided), "all")


def test_a_negative_prompt_removes_a_colour(draw: Draw) -> None:
    own, other = zip(*(row.kept for row in avoid(QUESTIONS, draw)), strict=True)
    assert len(own) >= 18
    assert sum(own) <= sum(other) - 3


def test_another_seed_gives_another_image_of_the_same_scene(draw: Draw) -> None:
    question = QUESTIONS[0]
    spec = question.spec(question.prompt())
    first, again, other = draw([spec, spec, replace(spec, seed=spec.seed ^ 1)])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert score(other, question.scene).background
