"""The demo's benches, run small: what they print is there, and their measures measure."""

import random

import numpy as np
import pytest
from serve_app.bench.contact_sheet import write_contact_sheet

from serve_app.bench.demo_quality import evaluate, exact, marked, right, through_vae
from serve_app.bench.demo_refiner import compare, psnr
from serve_app.demo.evaluation import pairs, questions, score_pair, shuffled
from serve_app.demo.renderer import paint


def test_exact_pictures_have_all_marks_even_through_the_vae() -> None:
    asked = questions(60)
    for pictures in (exact(asked), through_vae(exact(asked))):
        marks = marked(pictures, asked)
        for fact in ("background", "colour", "place", "kind", "large kind", "size", "alone"):
            rights, families = right(marks, fact, asked)
            assert len(rights) == len(families)
            assert np.mean(rights) >= 0.95, fact
    assert len(right(marks, "large kind", asked)[0]) < 60


def test_questions_are_kept_out_of_training_and_each_of_another_scene() -> None:
    asked = questions(900)
    assert all(q.scene.kept_out for q in asked)
    assert len({q.scene for q in asked}) == 900
    assert questions(3, first=5) == asked[5:8]


def test_a_shuffled_question_has_another_s_scene() -> None:
    asked = questions(50)
    assert all(q.scene != scene for q, scene in zip(asked, shuffled(asked), strict=True))


def test_both_halves_of_a_pair_must_be_right() -> None:
    asked = pairs(40)
    pictures = [np.asarray(paint(q.scene, random.Random(q.number))) for q in asked]
    rights = [score_pair(p, q.scene) for p, q in zip(pictures, asked, strict=True)]
    assert np.mean(rights) >= 0.95
    wrong = [score_pair(p, q.scene) for p, q in zip(pictures, asked[1:] + asked[:1], strict=True)]
    assert np.mean(wrong) <= 0.05


def test_psnr_is_the_textbook_s() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(flat, flat) == 100.0
    assert psnr(flat + 1, flat) == pytest.approx(48.13, abs=0.01)


@pytest.mark.long
def test_both_benches_print_their_tables(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(count=6, threads=2)
    told = capsys.readouterr().out
    for label in ("through the VAE", "Spanish less English", "Two shapes", "negative prompt"):
        assert label in told
    compare(count=4, threads=2)
    told = capsys.readouterr().out
    for label in ("predicted noise", "Width of the shape's edge", "PSNR to the exact picture"):
        assert label in told


@pytest.mark.long
def test_the_sheet_shows_every_prompt(tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("sheet") / "sheet.png"
    write_contact_sheet(output)
    assert output.stat().st_size > 10_000
