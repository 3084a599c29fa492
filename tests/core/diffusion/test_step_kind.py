"""What each step of an image computes: its rows, and whether it reuses deep features."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.sample import Sample, for_stage, new_sample, step_counts
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.diffusion.step_kind import StepKind, is_guided_at, step_kind, step_kinds

NOISE = NoiseConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="leading",
    steps_offset=1,
)
SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=10, guidance=5, handoff=0.6)
DEEP = replace(SPEC, cache=StepCache.DEEPCACHE)


def schedule_of(spec: ImageSpec) -> Schedule:
    return make_schedule(NOISE, spec.sampler, spec.steps, spec.strength, spec.handoff)


def guided(spec: ImageSpec) -> list[bool]:
    schedule = schedule_of(spec)
    return [is_guided_at(spec, schedule, index) for index in range(len(schedule))]


def shallow(spec: ImageSpec, stage: Stage = Stage.BASE) -> str:
    """A letter for each step: F for a full one, and s for a shallow one."""
    schedule = schedule_of(spec)
    kinds = (step_kind(spec, schedule, stage, index) for index in range(len(schedule)))
    return "".join("s" if kind.shallow else "F" for kind in kinds)


def test_guidance_is_on_above_the_lower_noise_level_and_up_to_the_higher_one() -> None:
    sigmas = schedule_of(SPEC).sigmas
    assert guided(replace(SPEC, guidance_interval=(sigmas[6], sigmas[2]))) == [
        2 <= index < 6 for index in range(10)
    ]
    assert guided(replace(SPEC, guidance_interval=(0, 10_000))) == guided(SPEC) == [True] * 10
    assert guided(replace(SPEC, guidance_interval=(0, 10_000), guidance=1)) == [False] * 10


def test_each_evaluation_of_heun_has_its_own_noise_level() -> None:
    spec = replace(SPEC, sampler=Sampler.HEUN, steps=3)
    sigmas = schedule_of(spec).sigmas
    assert guided(replace(spec, guidance_interval=(0, sigmas[1]))) == [False, *[True] * 4]


def test_every_third_step_of_deepcache_is_full() -> None:
    assert shallow(SPEC) == "F" * 10
    assert shallow(DEEP) == "FssFssFssF"
    late = replace(DEEP, strength=0.5)
    assert (schedule_of(late).start_index, shallow(late)[5:]) == (5, "FssFs")


def test_a_stage_begins_with_a_full_step() -> None:
    spec = replace(DEEP, handoff=0.5)
    first = schedule_of(spec).handoff_index
    assert first == 5
    assert shallow(spec, Stage.REFINER)[first:] == "FssFs"


def test_a_row_without_features_is_computed_in_full() -> None:
    """Guidance begins at the step after a full one, whose features are of the positive row."""
    sigmas = schedule_of(SPEC).sigmas
    assert shallow(replace(DEEP, guidance_interval=(0, sigmas[1]))) == "FFsFssFssF"
    assert shallow(replace(DEEP, guidance_interval=(sigmas[4], 10_000))) == "FssFssFssF"


def test_after_the_last_step_nothing_is_reused() -> None:
    spec = replace(DEEP, steps=2)
    assert step_kind(spec, schedule_of(spec), Stage.BASE, 2) == StepKind(2, shallow=False)


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, {StepKind(2): 10}),
        ({"guidance": 1.0}, {StepKind(1): 10}),
        ({"cache": StepCache.DEEPCACHE}, {StepKind(2): 4, StepKind(2, shallow=True): 6}),
        ({"guidance_interval": (0.0, 1.0)}, {StepKind(1): 6, StepKind(2): 4}),
    ],
)
def test_the_steps_that_are_left_are_counted_by_kind(
    fields: dict[str, Any], counts: dict[StepKind, int]
) -> None:
    spec = replace(SPEC, **fields)
    start: Sample[float] = new_sample("a", spec, schedule_of(spec), Stage.BASE)
    assert step_counts(start, 10) == counts
    assert step_counts(replace(start, index=10), 10) == {}
    (first, *_) = step_kinds(spec, start.schedule, Stage.BASE, 0, 10)
    assert first[0] == start.step_kind
    assert start.rows == start.step_kind.rows


def test_steps_of_both_kinds_have_keys_of_their_own_and_an_image_one_for_its_placement() -> None:
    start: Sample[float] = new_sample("a", DEEP, schedule_of(DEEP), Stage.BASE)
    plain: Sample[float] = new_sample("b", SPEC, schedule_of(SPEC), Stage.BASE)
    second = replace(start, index=1)
    assert start.batch_key == plain.batch_key != second.batch_key
    assert start.usual_batch_key == second.usual_batch_key == second.batch_key
    assert plain.usual_batch_key == plain.batch_key
    assert for_stage(second, Stage.REFINER).batch_key != second.batch_key
