from dataclasses import fields, replace
from typing import Any

import pytest

from serve_app.core.caller import Caller
from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.keys import BatchKey, ModelKey
from serve_app.core.diffusion.sample import (
    Sample,
    StageSegment,
    after_step,
    for_stage,
    map_latents,
    new_sample,
    plan_segments,
    segments_left,
    stage_profiles,
    stage_segments,
    with_latents,
    with_model,
    with_profile,
    with_prompt_info,
    without_tensors,
)
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from tests.support.keys import lora

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=20, guidance=5, handoff=0.8)
NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)
SCHEDULE = make_schedule(NOISE, Sampler.EULER, 20, None, 0.8)


def test_base_runs_the_steps_before_the_handoff_and_the_refiner_the_rest() -> None:
    assert stage_segments(SCHEDULE, 0.8, refiner=True) == (
        StageSegment(Stage.BASE, SCHEDULE.handoff_index, last=False),
        StageSegment(Stage.REFINER, 20, last=True),
    )


@pytest.mark.parametrize(("handoff", "refiner"), [(0.8, False), (1.0, True)])
def test_base_runs_every_step_without_a_refiner_or_with_handoff_one(
    handoff: float, refiner: bool
) -> None:
    assert stage_segments(SCHEDULE, handoff, refiner=refiner) == (
        StageSegment(Stage.BASE, 20, last=True),
    )


def test_an_image_that_starts_after_the_handoff_is_the_refiner_s_alone() -> None:
    late = make_schedule(NOISE, Sampler.EULER, 20, 0.1, 0.8)
    assert stage_segments(late, 0.8, refiner=True) == (StageSegment(Stage.REFINER, 20, last=True),)


def test_a_spec_says_all_that_its_segments_depend_on() -> None:
    schedule, segments = plan_segments(NOISE, SPEC, refiner=True)
    assert schedule == SCHEDULE
    assert segments == stage_segments(SCHEDULE, 0.8, refiner=True)
    _, late = plan_segments(NOISE, replace(SPEC, strength=0.1), refiner=True)
    assert [segment.stage for segment in late] == [Stage.REFINER]


def test_a_refiner_without_steps_still_decodes() -> None:
    short = make_schedule(NOISE, Sampler.DPMPP_2M, 4, None, 0.8)
    assert stage_segments(short, 0.8, refiner=True) == (
        StageSegment(Stage.BASE, 4, last=False),
        StageSegment(Stage.REFINER, 4, last=True),
    )


def test_a_sample_keeps_its_caller_on_its_way_and_batches_with_those_of_others() -> None:
    caller = Caller("key:1", 3.0)
    start: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE, caller=caller)
    stepped = after_step(with_latents(with_profile(start, "p"), 1.0, 1), 0.5, (0.25,), 2)
    snapshot = map_latents(stepped, str)
    for sample in (stepped, snapshot, for_stage(snapshot, Stage.REFINER), without_tensors(stepped)):
        assert sample.caller == caller
    assert start.batch_key == replace(start, caller=Caller("key:2")).batch_key


def test_a_step_returns_a_new_sample_and_leaves_the_old_one() -> None:
    start: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    stepped = after_step(with_latents(with_profile(start, "p"), 1.0, 1), 0.5, (0.25,), 2)
    assert (start.index, start.latents, start.noise_draws, start.profile) == (0, None, 0, None)
    assert (stepped.index, stepped.latents, stepped.solver_state, stepped.noise_draws) == (
        1,
        0.5,
        (0.25,),
        2,
    )


def test_a_step_changes_the_tensors_and_the_index_and_keeps_every_other_field() -> None:
    start: Sample[Any] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    changed = {"index", "latents", "solver_state", "noise_draws"}
    kept = {field.name: object() for field in fields(Sample) if field.name not in changed}
    filled: Sample[Any] = replace(start, **kept)  # type: ignore[arg-type]  # any value is kept
    stepped = after_step(filled, 0.5, (0.25,), 2)
    assert all(getattr(stepped, name) is value for name, value in kept.items())
    assert stepped.index == start.index + 1


def test_another_stage_starts_without_solver_state_and_profile() -> None:
    sample: Sample[float] = after_step(
        with_latents(with_profile(new_sample("a", SPEC, SCHEDULE, Stage.BASE), "p"), 1.0, 1),
        0.5,
        (0.25,),
        1,
    )
    crossed = for_stage(sample, Stage.REFINER)
    assert (crossed.stage, crossed.solver_state, crossed.profile) == (Stage.REFINER, (), None)
    assert (crossed.latents, crossed.index, crossed.noise_draws) == (0.5, 1, 1)
    assert for_stage(sample, Stage.BASE) is sample


def test_a_sample_remembers_the_profile_of_every_stage_that_it_went_through() -> None:
    start: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    base = with_latents(with_profile(start, "p"), 1.0, 1)
    assert stage_profiles(base) == ((Stage.BASE, "p"),)
    refined = map_latents(with_profile(for_stage(base, Stage.REFINER), "q"), str)
    assert stage_profiles(refined) == ((Stage.BASE, "p"), (Stage.REFINER, "q"))
    assert stage_profiles(without_tensors(refined)) == stage_profiles(refined)


@pytest.mark.parametrize(
    ("stage", "index", "left"),
    [
        (Stage.BASE, 0, [Stage.BASE, Stage.REFINER]),
        (Stage.BASE, 15, [Stage.BASE, Stage.REFINER]),
        (Stage.BASE, 16, [Stage.REFINER]),
        (Stage.REFINER, 16, [Stage.REFINER]),
        (Stage.REFINER, 20, [Stage.REFINER]),  # it still decodes
    ],
)
def test_a_sample_has_those_segments_left_that_it_has_not_finished(
    stage: Stage, index: int, left: list[Stage]
) -> None:
    segments = stage_segments(SCHEDULE, 0.8, refiner=True)
    sample: Sample[float] = replace(new_sample("a", SPEC, SCHEDULE, stage), index=index)
    assert [segment.stage for segment in segments_left(sample, segments)] == left


def test_a_sample_that_base_makes_alone_is_not_done_before_its_decode() -> None:
    segments = stage_segments(SCHEDULE, 1.0, refiner=False)
    sample: Sample[float] = replace(new_sample("a", SPEC, SCHEDULE, Stage.BASE), index=20)
    assert segments_left(sample, segments) == segments


def test_a_finished_sample_keeps_no_tensors_and_no_inputs() -> None:
    spec, inputs = replace(SPEC, strength=0.5), ImageInputs(bytes(64 * 64 * 3))
    start: Sample[float] = new_sample("a", spec, SCHEDULE, Stage.BASE, inputs)
    ended = replace(start, latents=0.5, solver_state=(0.25,), noise_draws=2, profile="p")
    assert without_tensors(ended) == replace(start, inputs=NO_INPUTS, noise_draws=2, profile="p")


def test_the_initial_image_is_dropped_once_it_is_latents() -> None:
    spec = replace(SPEC, strength=0.5)
    sample: Sample[float] = new_sample(
        "a", spec, SCHEDULE, Stage.BASE, ImageInputs(bytes(64 * 64 * 3))
    )
    assert sample.inputs.init_image is not None
    assert with_latents(sample, 1.0, 2).inputs.init_image is None


@pytest.mark.parametrize(
    ("strength", "init_image"), [(None, bytes(64 * 64 * 3)), (0.5, None), (0.5, b"short")]
)
def test_an_initial_image_and_a_strength_need_each_other(
    strength: float | None, init_image: bytes | None
) -> None:
    spec, inputs = replace(SPEC, strength=strength), ImageInputs(init_image)
    with pytest.raises(ValueError, match="initial image"):
        new_sample("a", spec, SCHEDULE, Stage.BASE, inputs)


def test_map_latents_changes_latents_and_solver_state_and_nothing_else() -> None:
    sample: Sample[float] = after_step(
        with_latents(
            with_prompt_info(new_sample("a", SPEC, SCHEDULE, Stage.BASE), 3, ("cut",)), 1.0, 1
        ),
        0.5,
        (0.25,),
        1,
    )
    texts = map_latents(sample, str)
    assert (texts.latents, texts.solver_state) == ("0.5", ("0.25",))
    assert map_latents(texts, float) == sample
    bare: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    assert map_latents(map_latents(bare, str), float) == bare


def test_a_sample_keeps_its_warnings_without_doubles() -> None:
    base: Sample[float] = with_prompt_info(
        new_sample("a", SPEC, SCHEDULE, Stage.BASE), 3, ("cut", "weighed")
    )
    crossed = with_prompt_info(for_stage(base, Stage.REFINER), 2, ("cut", "more"))
    assert crossed.warnings == ("cut", "weighed", "more")


def test_the_length_of_its_prompts_is_part_of_its_shape() -> None:
    bare: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    assert bare.batch_key == BatchKey(ModelKey(Stage.BASE), (8, 8), 1)
    assert with_prompt_info(bare, 3, ()).batch_key == BatchKey(ModelKey(Stage.BASE), (8, 8), 3)


def test_its_model_is_part_of_its_shape_but_not_at_the_refiner_which_is_one_for_all() -> None:
    bare: Sample[float] = new_sample("a", SPEC, SCHEDULE, Stage.BASE)
    fox = with_model(bare, ModelKey(Stage.BASE, "fox"))
    key = ModelKey(Stage.BASE, "fox")
    assert (fox.model_key, fox.batch_key) == (key, BatchKey(key, (8, 8), 1))
    assert (fox.spec.model, bare.spec.model) == ("fox", None)
    assert [str(bare.model_key), str(key)] == ["the base model", "fox"]
    refined = with_model(for_stage(fox, Stage.REFINER), ModelKey(Stage.REFINER, "owl"))
    assert (refined.model_key, refined.spec.model) == (ModelKey(Stage.REFINER, "owl"), "fox")
    assert for_stage(fox, Stage.REFINER).batch_key == for_stage(bare, Stage.REFINER).batch_key


def test_loras_are_worn_in_base_alone_in_one_order_and_part_what_steps_together() -> None:
    x, y, nothing = lora("x", 0.5), lora("y"), lora("z", 0.0)

    def sample(*loras: ExtensionRef) -> Sample[float]:
        return new_sample("a", replace(SPEC, extensions=loras), SCHEDULE, Stage.BASE)

    assert sample(y, nothing, x).active_extensions == (x, y)
    assert sample(y, x).batch_key == sample(x, y, nothing).batch_key
    shapes = {sample(*loras).batch_key for loras in ((), (x,), (y,), (x, y), (lora("x", 0.6),))}
    assert len(shapes) == 5
    assert for_stage(sample(x), Stage.REFINER).active_extensions == ()
    assert (
        for_stage(sample(x), Stage.REFINER).batch_key
        == for_stage(sample(), Stage.REFINER).batch_key
    )


@pytest.mark.parametrize(
    ("sampler", "strength", "steps"),
    [
        (Sampler.EULER, None, [0, 1, 2, 3]),
        (Sampler.EULER, 0.5, [0, 1]),
        (Sampler.HEUN, None, [0, 0, 1, 1, 2, 2, 3]),
        (Sampler.HEUN, 0.5, [0, 0, 1]),
    ],
)
def test_steps_are_counted_from_the_first_that_runs_whatever_the_evaluations(
    sampler: Sampler, strength: float | None, steps: list[int]
) -> None:
    spec = ImageSpec(prompt="a", seed=0, width=64, height=64, steps=4, guidance=5, sampler=sampler)
    spec = replace(spec, strength=strength)
    schedule = make_schedule(NoiseConfig(), sampler, 4, strength, 1.0)
    inputs = ImageInputs(bytes(64 * 64 * 3)) if strength else NO_INPUTS
    sample: Sample[float] = new_sample("a", spec, schedule, Stage.BASE, inputs)
    indices = range(schedule.start_index, len(schedule))
    assert [replace(sample, index=index).step for index in indices] == steps
