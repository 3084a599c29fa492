"""Sleeping networks: every step, prompt and stage shows in the picture, and faults happen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.stage_model import StageModel
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.reference import expected_picture
from serve_app.testing.sleeping_networks import NOISE
from serve_app.testing.sleeping_stage import sleeping_model

STEPS = 6
SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=STEPS, guidance=5.0)
CPU = torch.device("cpu")


def model(stage: Stage = Stage.BASE, strikes: Path | None = None) -> StageModel:
    return sleeping_model(GpuSpeed().scaled(1e-9), stage, "model", 2, strikes)


def begin(model: StageModel, spec: ImageSpec = SPEC, id: str = "x") -> Sample[torch.Tensor]:
    schedule = make_schedule(NOISE, spec.sampler, spec.steps, None, spec.handoff)
    sample: Sample[torch.Tensor] = new_sample(id, spec, schedule, Stage.BASE)
    return model.condition(sample)


def advance(
    model: StageModel, *samples: Sample[torch.Tensor], steps: int
) -> list[Sample[torch.Tensor]]:
    stepped = list(samples)
    for _ in range(steps):
        stepped = model.step(stepped, model.profile.lanes)
    return stepped


def picture(model: StageModel, *, skip: Sequence[int] = (), repeat: Sequence[int] = ()) -> bytes:
    sample = begin(model)
    for index in range(STEPS):
        for _ in range((index not in skip) + (index in repeat)):
            (stepped,) = advance(model, replace(sample, index=index), steps=1)
            sample = stepped
    return model.decode(sample)[1].tobytes()


def test_a_picture_is_a_function_of_its_request_alone() -> None:
    assert picture(model()) == picture(model())
    other = replace(SPEC, prompt="a hen"), replace(SPEC, seed=2), replace(SPEC, steps=7)
    pictures = {expected_picture(spec).tobytes() for spec in (SPEC, *other)}
    assert len(pictures) == 4
    assert picture(model()) in pictures


@pytest.mark.parametrize("step", range(STEPS))
def test_a_step_that_was_skipped_or_taken_twice_shows(step: int) -> None:
    right = picture(model())
    assert picture(model(), skip=[step]) != right
    assert picture(model(), repeat=[step]) != right


def test_steps_of_the_wrong_stage_show() -> None:
    assert picture(model(Stage.REFINER)) != picture(model(Stage.BASE))
    handed_over = {expected_picture(replace(SPEC, handoff=h)).tobytes() for h in (0.2, 0.8, 1.0)}
    assert len(handed_over) == 3


def test_a_picture_does_not_depend_on_its_company() -> None:
    net = model()
    pair = advance(net, begin(net), begin(net, replace(SPEC, seed=9), "y"), steps=STEPS)
    assert net.decode(pair[0])[1].tobytes() == picture(net)


def test_a_fault_makes_numbers_of_its_own_image_alone_invalid_and_at_its_step_alone(
    tmp_path: Path,
) -> None:
    net = model(strikes=tmp_path)
    bad = begin(net, replace(SPEC, prompt="fault:nan@2"), "bad")
    bad, good = advance(net, bad, begin(net), steps=2)
    assert bad.latents is not None
    assert bad.latents.isfinite().all()
    bad, good = advance(net, bad, good, steps=1)
    assert bad.latents is not None
    assert bad.latents.isnan().all()
    (good,) = advance(net, good, steps=STEPS - 3)
    assert net.decode(good)[1].tobytes() == picture(net)


def test_a_fault_happens_as_often_as_its_prompt_says_on_all_replicas_together(
    tmp_path: Path,
) -> None:
    failing = replace(SPEC, prompt="fault:fail@0*2")
    for _ in range(2):
        net = model(strikes=tmp_path)
        with pytest.raises(RuntimeError, match="the prompt asks for"):
            advance(net, begin(net, failing), steps=1)
    net = model(strikes=tmp_path)
    (sample,) = advance(net, begin(net, failing), steps=STEPS)
    assert np.array_equal(net.decode(sample)[1], expected_picture(failing))


def test_networks_without_a_folder_for_strikes_have_no_faults() -> None:
    assert expected_picture(replace(SPEC, prompt="fault:kill@0")).shape == (8, 8, 3)
