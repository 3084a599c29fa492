"""What is compiled before a model is ready, and what is refused then."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.core.service.warm_ups import WarmUp
from serve_app.runtime.lane_counts import LaneCounts, LaneKey
from serve_app.runtime.networks.compiled_unet import CompiledUNet
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput
from serve_app.runtime.parts import Parts
from serve_app.runtime.warm_up import warm_up
from tests.support.analytic_model import (
    CHECKPOINT,
    CPU,
    BlankTextEncoders,
    ConstantDenoiser,
    MeanPixels,
)

SHAPES = {(16, 16), (12, 20)}


class Echo(nn.Module):
    """A UNet that returns its rows."""

    def forward(self, rows: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return rows


class SlotDenoiser(ConstantDenoiser):
    """Gives each slot other bits, as compiled code may."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return x * torch.arange(1.0, len(inputs) + 1).view(-1, 1, 1, 1)


def run(denoiser: Denoiser, *, strict: bool = True) -> list[WarmUp]:
    """Return what was reported."""
    reported: list[WarmUp] = []
    parts = Parts(Conditioner(BlankTextEncoders(), CHECKPOINT), denoiser, MeanPixels())
    device = replace(CPU, compile_mode="regions")
    profile = device.numeric_profile(Stage.BASE, 4 if strict else 0, "sdxl")
    compiled = CompiledUNet(Echo(), lambda unet: unet, SHAPES, lambda: False)
    counts = LaneCounts(denoiser, (2, 4) if strict else ())
    warm_up(parts, profile, compiled, counts, (2, 4), CPU.torch_device, reported.append)
    return reported


def test_every_size_is_compiled_with_every_number_of_lanes() -> None:
    denoiser = ConstantDenoiser()
    run(denoiser)
    assert {lanes for _, lanes in denoiser.batches} == {2, 4}
    fast = ConstantDenoiser()
    run(fast, strict=False)
    assert fast.batches == [(2, 2), (4, 4)] * 2


def test_it_is_reported_how_much_is_compiled() -> None:
    reported = run(ConstantDenoiser())
    assert reported == [WarmUp("sdxl", done, 4) for done in range(5)]


def test_code_that_gives_a_row_other_bits_in_another_slot_is_refused_by_name() -> None:
    with pytest.raises(OperatorError, match="MODEL_DETERMINISM=strict can't be kept") as refused:
        run(SlotDenoiser())
    assert refused.value.subject == "MODEL_COMPILE=regions"
    assert "160 x 96" in refused.value.problem
    run(SlotDenoiser(), strict=False)


def test_a_compiler_that_fails_ends_the_start_with_what_it_says() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures.append(ValueError("no such\nkernel"))
    with pytest.raises(OperatorError, match="fails with ValueError: no such kernel") as refused:
        run(denoiser)
    assert refused.value.remedy == "Set MODEL_COMPILE=off"


def test_a_step_that_must_compile_first_is_known_to_take_longer() -> None:
    compiled = CompiledUNet(Echo(), lambda unet: unet, SHAPES, lambda: False)
    key = LaneKey((16, 16), 1, ())
    counts = LaneCounts(ConstantDenoiser(), (2,), is_ready=compiled.is_ready)
    assert counts.known_lanes(key, 1) is None
    compiled(torch.ones(2, 4, 16, 16), encoder_hidden_states=torch.ones(2, 77, 8))
    assert counts.known_lanes(key, 1) is not None
