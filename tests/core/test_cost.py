from dataclasses import replace

import pytest

from serve_app.core.cost import (
    Rate,
    decode_tflop,
    leg_tflop,
    megapixel_steps,
    step_tflop,
    work_ahead,
)
from serve_app.core.sample import Leg
from serve_app.core.spec import ImageSpec, Sampler, Stage

SPEC = ImageSpec(prompt="a fox", seed=0, width=1024, height=1024, steps=30, guidance=5)


@pytest.mark.parametrize(
    ("stage", "side", "tflop"),
    [
        (Stage.BASE, 512, 1.59),
        (Stage.BASE, 768, 3.64),
        (Stage.BASE, 1024, 6.76),
        (Stage.BASE, 1280, 11.2),
        (Stage.BASE, 1536, 17.3),
        (Stage.REFINER, 512, 1.62),
        (Stage.REFINER, 1024, 7.29),
        (Stage.REFINER, 1536, 19.6),
    ],
)
def test_a_row_costs_what_the_block_structure_counts(stage: Stage, side: int, tflop: float) -> None:
    assert step_tflop(stage, side, side, rows=1) == pytest.approx(tflop, rel=0.04)


def test_an_image_on_base_alone_is_its_steps_and_a_decode() -> None:
    whole = leg_tflop(SPEC, Leg(Stage.BASE, 30, last=True), 0)
    assert whole == pytest.approx(416, rel=0.01)
    assert leg_tflop(SPEC, Leg(Stage.BASE, 30, last=True), 30) == decode_tflop(1024, 1024)


def test_the_work_ahead_shrinks_leg_by_leg() -> None:
    legs = (Leg(Stage.BASE, 24, last=False), Leg(Stage.REFINER, 30, last=True))
    (base, refiner) = work_ahead(SPEC, legs, 0)
    assert base == (Stage.BASE, pytest.approx(24 * 2 * 6.76))
    assert refiner == (Stage.REFINER, pytest.approx(6 * 2 * 7.29 + 10.47))
    (nothing, rest) = work_ahead(SPEC, legs, 27)
    assert nothing == (Stage.BASE, 0)
    assert rest[1] == pytest.approx(3 * 2 * 7.29 + 10.47)


def test_a_rate_believes_its_first_observation_and_leans_to_later_ones() -> None:
    rate = Rate().seen(100, 2)
    assert (rate.tflops, rate.known) == (50, True)
    assert 50 < rate.seen(100, 1).tflops < 100
    assert rate.seconds(25) == 0.5


@pytest.mark.parametrize(("work", "seconds"), [(0, 1), (1, 0), (-1, 1)])
def test_an_empty_observation_teaches_nothing(work: float, seconds: float) -> None:
    assert Rate().seen(work, seconds) == Rate()


def test_an_allowance_counts_steps_and_megapixels_and_only_the_steps_that_are_taken() -> None:
    spec = ImageSpec(prompt="a", seed=0, width=1000, height=2000, steps=30, guidance=5)
    assert megapixel_steps(spec) == 60
    assert megapixel_steps(replace(spec, strength=0.5)) == 30
    assert megapixel_steps(replace(spec, strength=0.01)) == 2


def test_a_step_of_heun_counts_twice_against_the_allowance() -> None:
    heun = replace(SPEC, sampler=Sampler.HEUN)
    assert megapixel_steps(heun) == 2 * megapixel_steps(SPEC)
