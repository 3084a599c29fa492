"""The benchmarks of the demo, run small: their tables are there, and their measures measure."""

import random

import numpy as np
import pytest

from serve_app.bench.demo_quality import evaluate, exact, outcomes, score_all, through_vae
from serve_app.bench.demo_refiner import compare, psnr
from serve_app.demo.evaluation import pairs, questions, score_pair, shuffled
from serve_app.demo.renderer import paint


@pytest.mark.long
def test_exact_images_score_highest_even_through_the_vae() -> None:
    exam = questions(60)
    for images in (exact(exam), through_vae(exact(exam))):
        scores = score_all(images, exam)
        for fact in ("background", "colour", "place", "kind", "large kind", "size", "alone"):
            correct, families = outcomes(scores, fact, exam)
            assert len(correct) == len(families)
            assert np.mean(correct) >= 0.95, fact
    assert len(outcomes(scores, "large kind", exam)[0]) < 60


def test_questions_have_scenes_of_their_own_that_training_never_showed() -> None:
    exam = questions(900)
    assert all(q.scene.kept_out for q in exam)
    assert len({q.scene for q in exam}) == 900
    assert questions(3, first=5) == exam[5:8]


def test_a_shuffled_question_has_another_s_scene() -> None:
    exam = questions(50)
    assert all(q.scene != scene for q, scene in zip(exam, shuffled(exam), strict=True))


def test_a_pair_is_right_only_if_both_halves_are() -> None:
    exam = pairs(40)
    images = [np.asarray(paint(q.scene, random.Random(q.number))) for q in exam]
    correct = [score_pair(p, q.scene) for p, q in zip(images, exam, strict=True)]
    assert np.mean(correct) >= 0.95
    wrong = [score_pair(p, q.scene) for p, q in zip(images, exam[1:] + exam[:1], strict=True)]
    assert np.mean(wrong) <= 0.05


def test_psnr_equals_the_textbook() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(flat, flat) == 100.0
    assert psnr(flat + 1, flat) == pytest.approx(48.13, abs=0.01)


@pytest.mark.long
def test_both_benchmarks_print_their_tables(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(count=6, threads=2)
    printed = " ".join(capsys.readouterr().out.split())  # titles may be wrapped
    for label in ("exact,", "Spanish minus English", "Two shapes", "negative prompt"):
        assert label in printed
    compare(count=4, threads=2)
    printed = " ".join(capsys.readouterr().out.split())
    for label in ("predicted noise", "Width of the shape's edge", "PSNR to the exact image"):
        assert label in printed
