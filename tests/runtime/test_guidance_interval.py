"""Guidance in an interval of noise levels: against stock diffusers, and in rows that are freed."""

from dataclasses import replace

import numpy as np
import pytest

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.demo_models import Engines
from tests.support.engine_runs import Heard, drain, run_images, sample_of, whole
from tests.support.reference_diffusers import Stock

LEVELS = 2  # of 255
SPEC = ImageSpec(
    prompt="a red fox in the snow",
    negative_prompt="blur",
    seed=7,
    width=128,
    height=128,
    steps=8,
    guidance=6.9,
)
MIDDLE, LATE, EARLY = (0.6, 6.0), (0.0, 2.0), (1.0, 10_000.0)


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(np.int16) - theirs).max())


@pytest.mark.parametrize(
    ("sampler", "interval"),
    [
        (Sampler.EULER, MIDDLE),
        (Sampler.HEUN, MIDDLE),
        pytest.param(Sampler.EULER_A, LATE, marks=pytest.mark.long),
        pytest.param(Sampler.DPMPP_2M, EARLY, marks=pytest.mark.long),
        pytest.param(Sampler.DPMPP_2M_KARRAS, MIDDLE, marks=pytest.mark.long),
    ],
)
def test_an_image_guided_in_an_interval_is_that_of_diffusers_dynamic_guidance(
    engines: Engines, stock: Stock, sampler: Sampler, interval: tuple[float, float]
) -> None:
    requested = replace(SPEC, sampler=sampler, guidance_interval=interval)
    (picture,) = run_images(engines(), [(requested, None)])
    theirs = stock.image_with_interval(requested)
    assert 0 < stock.guided_steps < SPEC.steps * sampler.nfe - 1
    assert distance(picture, theirs) <= LEVELS
    assert distance(picture, stock.image(replace(requested, guidance_interval=None))) > 5 * LEVELS


def test_base_and_refiner_ask_the_same_interval(engines: Engines, stock: Stock) -> None:
    requested = replace(SPEC, steps=15, handoff=0.6, guidance_interval=(0.3, 6.0))
    (picture,) = run_images(engines(refiner=True), [(requested, None)])
    theirs = stock.image_with_interval(requested, refine=True)
    assert 0 < stock.guided_steps < requested.steps
    assert distance(picture, theirs) <= LEVELS


def test_an_interval_around_all_noise_levels_changes_no_byte(engines: Engines) -> None:
    (plain,) = run_images(engines(), [(SPEC, None)])
    (whole_range,) = run_images(engines(), [(replace(SPEC, guidance_interval=(0, 10_000)), None)])
    (none,) = run_images(engines(), [(replace(SPEC, guidance_interval=(9_000, 10_000)), None)])
    (unguided,) = run_images(engines(), [(replace(SPEC, guidance=1.0), None)])
    assert plain.tobytes() == whole_range.tobytes() != none.tobytes() == unguided.tobytes()


def test_freed_rows_go_to_other_images(
    models: dict[str, dict[Stage, StageModel]],
) -> None:
    """Eight rows hold four guided images. Outside their interval, eight step together."""
    steps: list[StepRecord] = []
    engine = Engine(
        ModelCache.of(models["strict"][Stage.BASE]), snapshot_every=100, on_step=steps.append
    )
    for number in range(8):
        sample = sample_of(replace(SPEC, guidance_interval=(0, 1.0)), f"image {number}")
        engine.submit(sample, whole(sample), Heard())
    drain(engine)
    assert (max(len(step.ids) for step in steps), max(step.rows for step in steps)) == (8, 8)
    guided = [step for step in steps if step.rows == 2 * len(step.ids)]
    assert max(len(step.ids) for step in guided) == 4
    assert all(step.lanes == 8 for step in steps)
