from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.keys import BatchKey, ModelKey
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import OperatorError, OutputNotFinite
from serve_app.runtime.lane_counts import lane_counts_for
from serve_app.runtime.live_sample import DeviceSample, HostSample, to_device, to_host
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.noise import Noise
from tests.support.analytic_model import (
    CPU,
    ConstantDenoiser,
    RecordingExtension,
    analytic_model,
)
from tests.support.engine_runs import sample_of
from tests.support.keys import lora_key

SPEC = ImageSpec(prompt="a fox", seed=9, width=64, height=64, steps=10, guidance=5)


def live(sample: HostSample) -> DeviceSample:
    return to_device(sample, CPU.torch_device)


def test_noise_is_the_same_in_and_out_of_order() -> None:
    generator = torch.Generator().manual_seed(9)
    plain = [torch.randn(1, 4, 8, 8, generator=generator)[0] for _ in range(4)]
    noise = Noise(9, (8, 8))
    for number in (0, 1, 2, 3, 1, 3, 0):
        assert torch.equal(noise.draw(number, CPU.torch_device), plain[number])


def test_an_image_from_noise_begins_with_its_first_draw() -> None:
    model = analytic_model(ConstantDenoiser())
    begun = model.condition(live(sample_of(SPEC)))
    assert begun.latents is not None
    scale = begun.schedule.init_noise_sigma
    assert torch.equal(begun.latents, Noise(9, (8, 8)).draw(0, CPU.torch_device) * scale)
    assert (begun.noise_draws, begun.profile) == (1, model.profile.name)


def test_a_conditioned_sample_says_how_long_its_prompts_are_and_what_to_warn_of() -> None:
    model = analytic_model(ConstantDenoiser())
    spec = replace(SPEC, prompt="a fox! BREAK in the snow", negative_prompt="a BREAK b BREAK c")
    begun = model.condition(live(sample_of(spec)))
    assert begun.batch_key == BatchKey(ModelKey(Stage.BASE), (8, 8), 3)
    assert begun.warnings == ("the prompt shouts",)
    again = model.condition(live(to_host(begun)))
    assert (again.chunks, again.warnings) == (begun.chunks, begun.warnings)
    unguided = model.condition(live(sample_of(replace(spec, guidance=1.0), "unguided")))
    assert unguided.chunks == 2


def test_an_image_from_an_image_uses_the_second_draw_after_the_posteriors() -> None:
    model = analytic_model(ConstantDenoiser())
    spec = ImageSpec(
        prompt="a fox", seed=9, width=64, height=64, steps=10, guidance=5, strength=0.5
    )
    grey = np.full(64 * 64 * 3, 51, np.uint8).tobytes()
    begun = model.encode(model.condition(live(sample_of(spec, source=grey))))
    noise = Noise(9, (8, 8)).draw(1, CPU.torch_device)
    assert begun.latents is not None
    expected = 0.2 + begun.schedule.sigmas[5] * noise
    assert torch.allclose(begun.latents, expected, atol=1e-5)
    assert begun.inputs.init_image is None
    assert begun.noise_draws == 2


def test_a_kind_of_extension_sees_the_inputs_of_every_row_of_a_call() -> None:
    """As an extension with an image of its own needs: a negative row, then a positive one."""
    extension = RecordingExtension()
    model = analytic_model(ConstantDenoiser(), extensions={"lora": extension})
    model.attach(lora_key("ink"), [])
    assert extension.rows == [ImageInputs()] * 8
    spec = replace(SPEC, strength=0.5, extensions=(ExtensionRef("lora", "ink"),))
    grey, white = bytes([51] * 64 * 64 * 3), bytes([255] * 64 * 64 * 3)
    unguided = replace(spec, guidance=1.0)
    first = model.condition(live(sample_of(spec, "first", source=grey)))
    assert (extension.active, extension.rows) == (spec.extensions, [ImageInputs(grey)] * 2)
    second = model.condition(live(sample_of(unguided, "second", source=white)))
    assert extension.rows == [ImageInputs(white)]
    encoded = [replace(model.encode(sample), inputs=sample.inputs) for sample in (first, second)]
    model.step(encoded, 8)
    assert extension.rows == [ImageInputs(grey), ImageInputs(grey), ImageInputs(white)]


def test_a_resumed_ancestral_image_takes_the_next_draws_of_its_noise() -> None:
    spec = ImageSpec(
        prompt="a fox", seed=9, width=64, height=64, steps=10, guidance=5, sampler=Sampler.EULER_A
    )
    first, second = analytic_model(ConstantDenoiser()), analytic_model(ConstantDenoiser())
    (walked,) = first.step([first.condition(live(sample_of(spec)))], 8)
    assert walked.noise_draws == 2
    (present,) = first.step([walked], 8)
    (resumed,) = second.step([second.condition(live(to_host(walked)))], 8)
    assert present.latents is not None
    assert resumed.latents is not None
    assert torch.equal(present.latents, resumed.latents)


def test_a_sample_without_latents_or_conditioning_raises_an_error_that_names_them() -> None:
    model = analytic_model(ConstantDenoiser())
    fresh = live(sample_of(SPEC))
    with pytest.raises(ValueError, match="no latents yet"):
        model.step([fresh], 8)
    with pytest.raises(ValueError, match="no initial image"):
        model.encode(fresh)


class LongSlotDenoiser(ConstantDenoiser):
    """Breaks batch invariance for prompts of more than one chunk."""

    def __call__(
        self, x: torch.Tensor, points: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        if len(points[0].conditioning.positive.embeds) == 77:
            return x
        return x * torch.arange(1.0, len(points) + 1).view(-1, 1, 1, 1)


class SlotDenoiser(ConstantDenoiser):
    """Breaks batch invariance: the result depends on the slot."""

    def __call__(
        self, x: torch.Tensor, points: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return x * torch.arange(1.0, len(points) + 1).view(-1, 1, 1, 1)


class NanDenoiser(ConstantDenoiser):
    """Gives what a UNet with a NaN in its weights gives."""

    def __call__(
        self, x: torch.Tensor, points: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return x * torch.nan


def test_a_network_that_gives_nan_is_no_fault_of_the_cpu_threads() -> None:
    with pytest.raises(
        OutputNotFinite, match=r"output is not finite \(NaN or infinite\)"
    ) as refused:
        analytic_model(NanDenoiser()).check_batch_invariance()
    assert refused.value.code == "NUMERIC_FAULT"
    assert "THREADS" not in str(refused.value)


def test_a_machine_without_batch_invariance_is_detected() -> None:
    analytic_model(ConstantDenoiser()).check_batch_invariance()
    with pytest.raises(OperatorError, match="MODEL_DETERMINISM=strict can't be kept"):
        analytic_model(SlotDenoiser()).check_batch_invariance()
    with pytest.raises(OperatorError, match="MODEL_DETERMINISM=strict can't be kept"):
        analytic_model(LongSlotDenoiser()).check_batch_invariance()
    analytic_model(SlotDenoiser(), lane_counts=()).check_batch_invariance()


@pytest.mark.parametrize(("images", "lanes"), [(1, 2), (2, 4), (3, 8), (4, 8), (5, 16), (8, 16)])
def test_the_most_lanes_are_a_power_of_two_with_room_for_every_image_guided(
    images: int, lanes: int
) -> None:
    assert lane_counts_for(images, strict=True)[-1] == lanes
    assert lane_counts_for(images, strict=False) == ()
