"""The fast path against the slow one: through the engine, the picture stock diffusers makes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from serve_app.core.diffusion.samplers import Sampler, Solver
from serve_app.core.diffusion.spec import ImageSpec
from tests.support.demo_models import Engines
from tests.support.engine_runs import run_images
from tests.support.reference_diffusers import Stock

LEVELS = 2  # of 255
SOLVERS = [Sampler(solver) for solver in Solver] + [Sampler.DPMPP_2M_KARRAS]
# Stock repeats one step of Heun's at the hand-off; see test_a_pair_of_heun_is_never_cut.
CONTINUED = [sampler for sampler in SOLVERS if sampler is not Sampler.HEUN]


def spec(**requested: Any) -> ImageSpec:
    plain: dict[str, Any] = {
        "prompt": "a red fox in the snow",
        "seed": 7,
        "width": 128,
        "height": 128,
        "steps": 20,
        "guidance": 6.9,
    }
    return ImageSpec(**(plain | requested))


RunTogether = Callable[..., dict[ImageSpec, np.ndarray]]


@pytest.fixture(scope="module")
def run_together(engines: Engines) -> RunTogether:
    """Our images of several specs that run together; each set of specs runs once."""

    @cache
    def walk_of(
        specs: tuple[ImageSpec, ...], source: bytes | None = None, *, refiner: bool = False
    ) -> dict[ImageSpec, np.ndarray]:
        pictures = run_images(engines(refiner=refiner), [(spec, source) for spec in specs])
        return dict(zip(specs, pictures, strict=True))

    return walk_of


def each(samplers: Sequence[Sampler], **requested: object) -> tuple[ImageSpec, ...]:
    return tuple(spec(sampler=sampler, **requested) for sampler in samplers)


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    farthest = int(np.abs(ours.astype(np.int16) - theirs).max())
    print(f"farthest pixel: {farthest} of 255")
    return farthest


MIXED = [
    spec(steps=4, guidance=1.0, seed=1, sampler=Sampler.EULER),
    spec(steps=12, guidance=9.0, seed=2, sampler=Sampler.EULER_A, negative_prompt="blur"),
    spec(steps=10, guidance=5.0, seed=3, sampler=Sampler.DPMPP_2M, negative_prompt=""),
    spec(steps=11, guidance=7.5, seed=4, sampler=Sampler.DPMPP_2M_KARRAS, prompt="a blue house"),
    spec(steps=7, guidance=1.0, seed=5, sampler=Sampler.DPMPP_2M, prompt="a boat"),
    spec(steps=9, guidance=3.0, seed=6, sampler=Sampler.EULER, prompt="an owl at night"),
    spec(steps=5, guidance=2.0, seed=2**32 - 1, sampler=Sampler.EULER_A),
    spec(steps=8, guidance=4.0, seed=8, sampler=Sampler.HEUN),
    spec(steps=6, guidance=6.0, seed=9, sampler=Sampler.UNIPC_KARRAS),
    spec(steps=8, guidance=3.0, seed=10, sampler=Sampler.DPMPP_SDE_KARRAS),
    spec(steps=6, guidance=1.0, seed=12, sampler=Sampler.LCM),
]


@pytest.mark.parametrize("mode", ["strict", "fast"])
def test_a_mixed_batch_gives_what_stock_gives_for_each_alone(
    engines: Engines, stock: Stock, mode: str
) -> None:
    pictures = run_images(
        engines(mode),
        [(s, None) for s in MIXED],
    )
    distances = [distance(p, stock.image(s)) for p, s in zip(pictures, MIXED, strict=True)]
    assert max(distances) <= LEVELS, distances


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_sampler_draws_what_stock_draws(
    run_together: RunTogether, stock: Stock, sampler: Sampler
) -> None:
    requested = spec(steps=7, sampler=sampler)
    pictures = run_together(each(list(Sampler), steps=7))
    assert distance(pictures[requested], stock.image(requested)) <= LEVELS


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize(
    "strength", [0.5, *(pytest.param(more, marks=pytest.mark.long) for more in (0.2, 0.9))]
)
def test_an_image_from_an_image_is_stocks(
    run_together: RunTogether, stock: Stock, photo: bytes, strength: float, sampler: Sampler
) -> None:
    requested = spec(strength=strength, sampler=sampler)
    pictures = run_together(each(SOLVERS, strength=strength), photo)
    assert distance(pictures[requested], stock.image(requested, photo)) <= LEVELS


@pytest.mark.parametrize("sampler", CONTINUED)
@pytest.mark.parametrize("handoff", [0.8, pytest.param(0.6, marks=pytest.mark.long)])
def test_base_and_refiner_together_are_stocks_ensemble(
    run_together: RunTogether, stock: Stock, handoff: float, sampler: Sampler
) -> None:
    kinds: list[dict[str, object]] = [
        {"handoff": handoff, "steps": 15},
        {"handoff": handoff, "steps": 8, "negative_prompt": "grey", "seed": 11},
    ]
    pictures = run_together(sum((each(CONTINUED, **kind) for kind in kinds), ()), refiner=True)
    for kind in kinds:
        requested = spec(sampler=sampler, **kind)
        assert distance(pictures[requested], stock.image(requested, refine=True)) <= LEVELS


@pytest.mark.parametrize("sampler", CONTINUED)
@pytest.mark.parametrize("handoff", [0.8, pytest.param(0.6, marks=pytest.mark.long)])
def test_the_two_stage_refine_is_stocks(
    run_together: RunTogether, stock: Stock, photo: bytes, handoff: float, sampler: Sampler
) -> None:
    requested = spec(strength=0.6, handoff=handoff, sampler=sampler)
    pictures = run_together(each(CONTINUED, strength=0.6, handoff=handoff), photo, refiner=True)
    assert distance(pictures[requested], stock.image(requested, photo, refine=True)) <= LEVELS


def test_an_image_that_enters_after_the_handoff_is_the_refiners_alone(
    engines: Engines, stock: Stock, photo: bytes
) -> None:
    requested = spec(strength=0.2, handoff=0.8, steps=30)
    pair = engines(refiner=True)
    (picture,) = run_images(pair, [(requested, photo)])
    assert all(e.stats().steps == 0 for stage, e in pair.items() if stage == "base")
    assert distance(picture, stock.refined_alone(requested, photo)) <= LEVELS


@pytest.mark.parametrize(
    ("steps", "sampler"),
    [(1, Sampler.EULER), (4, Sampler.DPMPP_2M)],
    ids=["base takes no step", "the refiner takes no step"],
)
def test_a_stage_without_steps_is_legal(
    engines: Engines, stock: Stock, steps: int, sampler: Sampler
) -> None:
    requested = spec(steps=steps, sampler=sampler, handoff=0.8)
    (picture,) = run_images(engines(refiner=True), [(requested, None)])
    assert distance(picture, stock.image(requested, refine=True)) <= LEVELS


@pytest.mark.parametrize("negative", [None, "", "ugly"])
@pytest.mark.parametrize("refine", [False, True])
def test_an_absent_negative_prompt_is_not_an_empty_one(
    engines: Engines, stock: Stock, negative: str | None, refine: bool
) -> None:
    requested = spec(negative_prompt=negative, handoff=0.8 if refine else 1.0, steps=8)
    (picture,) = run_images(engines(refiner=refine), [(requested, None)])
    assert distance(picture, stock.image(requested, refine=refine)) <= LEVELS


def test_pictures_of_other_sizes_are_stocks(engines: Engines, stock: Stock) -> None:
    requested = [spec(width=152, height=104, steps=6), spec(width=96, height=168, steps=8)]
    pictures = run_images(engines(), [(s, None) for s in requested])
    for picture, expected in zip(pictures, requested, strict=True):
        assert distance(picture, stock.image(expected)) <= LEVELS


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a red fox in the sand"},
        {"negative_prompt": "ugly"},
        {"negative_prompt": ""},
        {"seed": 8},
        {"steps": 7},
        {"guidance": 7.9},
        {"sampler": Sampler.EULER_A},
        {"sampler": Sampler.DPMPP_2M},
    ],
    ids=str,
)
def test_the_comparison_would_notice(
    engines: Engines, stock: Stock, change: dict[str, object]
) -> None:
    """The control: each option changes the image by far more than the tolerance. At six
    steps, since a trained network draws nearly the same in twenty and in twenty-one."""
    (picture,) = run_images(engines(), [(spec(**{"steps": 6, **change}), None)])
    assert distance(picture, stock.image(spec(steps=6))) > 5 * LEVELS


def test_the_handoff_shows_in_the_picture(engines: Engines, stock: Stock) -> None:
    (picture,) = run_images(engines(refiner=True), [(replace(spec(), handoff=0.3), None)])
    theirs = stock.image(replace(spec(), handoff=0.8), refine=True)
    assert distance(picture, theirs) > 5 * LEVELS
