"""Prompts that change from step to step: as stock diffusers with the prompts put in by hand.

And with the same bytes alone, in company, continued elsewhere and run again.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve_app.core.diffusion.sample import StageSegment, for_stage
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.live_sample import HostSample
from tests.support.demo_models import Engines
from tests.support.engine_runs import Heard, drain, run_images, sample_of
from tests.support.reference_diffusers import Stock

LEVELS = 2  # of 255
RED, BLUE = "a red circle", "a blue circle"
CHANGING = "[a red circle:a blue circle:0.5]"


def spec(**requested: Any) -> ImageSpec:
    plain: dict[str, Any] = {
        "prompt": CHANGING,
        "negative_prompt": "grey",
        "seed": 3,
        "width": 128,
        "height": 128,
        "steps": 10,
        "guidance": 6.0,
    }
    return ImageSpec(**(plain | requested))


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    farthest = int(np.abs(ours.astype(np.int16) - theirs).max())
    print(f"farthest pixel: {farthest} of 255")
    return farthest


def prompts(*parts: tuple[str, int], negative: str = "grey") -> list[tuple[str, str]]:
    return [(prompt, negative) for prompt, evaluations in parts for _ in range(evaluations)]


@pytest.mark.parametrize(
    ("requested", "by_evaluation"),
    [
        (spec(), prompts((RED, 5), (BLUE, 5))),
        pytest.param(
            spec(sampler=Sampler.EULER_A, guidance=1.0),
            prompts((RED, 5), (BLUE, 5)),
            marks=pytest.mark.long,
        ),
        (spec(sampler=Sampler.DPMPP_2M_KARRAS, steps=7), prompts((RED, 3), (BLUE, 4))),
        pytest.param(
            spec(sampler=Sampler.HEUN, steps=6),
            prompts((RED, 6), (BLUE, 5)),
            marks=pytest.mark.long,
        ),
        (spec(sampler=Sampler.HEUN, prompt="a [red:blue:1] circle"), prompts((RED, 2), (BLUE, 17))),
        (
            spec(prompt="a [red|blue] circle", negative_prompt="[grey|white|black]", steps=5),
            [(RED, "grey"), (BLUE, "white"), (RED, "black"), (BLUE, "grey"), (RED, "white")],
        ),
    ],
)
def test_a_prompt_that_changes_is_stocks(
    engines: Engines, stock: Stock, requested: ImageSpec, by_evaluation: list[tuple[str, str]]
) -> None:
    (picture,) = run_images(engines(), [(requested, None)])
    assert distance(picture, stock.changing_image(requested, by_evaluation)) <= LEVELS


def test_an_image_from_an_image_counts_the_steps_that_run(
    engines: Engines, stock: Stock, photo: bytes
) -> None:
    requested = spec(prompt="a [red:blue:3] circle", strength=0.5)
    (picture,) = run_images(engines(), [(requested, photo)])
    expected = stock.changing_image(requested, prompts((RED, 3), (BLUE, 2)), photo)
    assert distance(picture, expected) <= LEVELS
    share_of_all = spec(strength=0.5)
    (unchanged,) = run_images(engines(), [(share_of_all, photo)])
    (red,) = run_images(engines(), [(replace(share_of_all, prompt=RED), photo)])
    assert np.array_equal(unchanged, red)


@pytest.mark.parametrize(("change", "handoff_prompt"), [("3", BLUE), ("9", RED)])
def test_base_and_refiner_count_the_same_steps(
    engines: Engines, stock: Stock, change: str, handoff_prompt: str
) -> None:
    requested = spec(prompt=f"a [red:blue:{change}] circle", handoff=0.6)
    first = int(change)
    assert handoff_prompt == (BLUE if first < sample_of(requested).schedule.handoff_index else RED)
    (picture,) = run_images(engines(refiner=True), [(requested, None)])
    by_step = prompts((RED, first), (BLUE, 10 - first))
    assert distance(picture, stock.changing_image(requested, by_step, refine=True)) <= LEVELS


def test_the_comparison_would_notice_a_change_one_step_late(engines: Engines, stock: Stock) -> None:
    (picture,) = run_images(engines(), [(spec(), None)])
    late = stock.changing_image(spec(), prompts((RED, 6), (BLUE, 4)))
    assert distance(picture, late) > LEVELS


def test_a_change_has_the_same_bytes_beside_others(engines: Engines) -> None:
    alone = run_images(engines(), [(spec(), None)])[0]
    others = [
        spec(prompt="a [red|blue] star", seed=4),
        spec(prompt="a star", steps=4, guidance=1.0),
        spec(seed=5, negative_prompt="[grey:white:4]", sampler=Sampler.HEUN),
    ]
    together = run_images(engines(), [(other, None) for other in (others[0], spec(), *others[1:])])
    assert np.array_equal(together[1], alone)
    for other, picture in zip(others, [together[0], *together[2:]], strict=True):
        assert np.array_equal(run_images(engines(), [(other, None)])[0], picture)


@pytest.mark.parametrize(
    "requested",
    [
        spec(prompt="a [red:blue:4] circle"),
        pytest.param(
            spec(prompt="a [[red|blue]:green:6] circle", sampler=Sampler.HEUN, steps=8),
            marks=pytest.mark.long,
        ),
        spec(prompt="[a red circle BREAK on white:a blue circle:4]", sampler=Sampler.DPMPP_2M),
    ],
    ids=["edit", "alternation", "length"],
)
def test_a_change_has_the_same_bytes_continued_elsewhere_after_every_step(
    engines: Engines, requested: ImageSpec
) -> None:
    sample = sample_of(requested)
    end = StageSegment(Stage.BASE, len(sample.schedule), last=True)
    whole = run_segment(engines, sample, end).picture
    for step in range(1, len(sample.schedule)):
        sample = run_segment(engines, sample, replace(end, stop=step, last=False)).finished.sample
        assert sample.index == step
        assert sample.chunks == ("BREAK" in requested.prompt) + 1
    assert np.array_equal(run_segment(engines, sample, end).picture, whole)


def test_a_change_has_the_same_bytes_in_a_segment_that_is_run_again(engines: Engines) -> None:
    sample = sample_of(spec(prompt="a [red:blue:3] [circle:star:9]", handoff=0.6), refiner=True)
    middle = sample.schedule.handoff_index
    base = StageSegment(Stage.BASE, middle, last=False)
    handed = [run_segment(engines, sample, base).finished.sample for _ in range(2)]
    refiner = StageSegment(Stage.REFINER, len(sample.schedule), last=True)
    runs = [run_segment(engines, for_stage(end, Stage.REFINER), refiner) for end in handed]
    assert np.array_equal(runs[0].picture, runs[1].picture)
    walked = for_stage(handed[0], Stage.REFINER)
    for step in range(middle + 1, len(sample.schedule)):
        walked = run_segment(
            engines, walked, replace(refiner, stop=step, last=False)
        ).finished.sample
    assert np.array_equal(run_segment(engines, walked, refiner).picture, runs[0].picture)


def run_segment(engines: Engines, sample: HostSample, segment: StageSegment) -> Heard:
    """Run a segment on an unused engine."""
    heard = Heard()
    engine = engines(refiner=True)[segment.stage]
    engine.submit(sample, segment, heard)
    drain(engine)
    return heard
