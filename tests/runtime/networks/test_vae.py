"""What the VAE makes of values that are not finite; its pictures are held by the equivalence."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.core.errors import NumericFault
from serve_app.runtime.networks.vae import SdxlVae
from tests.support.analytic_model import CPU
from tests.support.damaged_models import DamagedDemo

LATENTS = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
LARGE = 2.0**15  # a power of two: it changes no bit of what GroupNorm makes of it


@pytest.fixture(scope="module")
def half() -> DamagedDemo:
    """The demo with its VAE in fp16."""
    return DamagedDemo(device=replace(CPU, vae_dtype=torch.float16))


@pytest.fixture(scope="module")
def whole() -> DamagedDemo:
    return DamagedDemo()


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def codec(vae: Any) -> SdxlVae:
    return SdxlVae(vae, torch.device("cpu"))


def test_a_vae_that_overflows_in_fp16_decodes_once_more_in_fp32(
    half: DamagedDemo, whole: DamagedDemo
) -> None:
    vae = half.modules.vae
    before = {name: tensor.data_ptr() for name, tensor in vae.named_parameters()}
    assert codec(vae).decode(LATENTS).warnings == ()
    with half.scaled("conv_in", LARGE), whole.scaled("conv_in", LARGE):
        expected = codec(whole.modules.vae).decode(LATENTS)
        first, second = codec(vae).decode(LATENTS), codec(vae).decode(LATENTS)
    assert first.warnings == ("the VAE overflowed in float16 and was run in float32",)
    assert expected.warnings == ()
    assert np.array_equal(first.image, expected.image)
    assert np.array_equal(second.image, expected.image)
    assert np.ptp(first.image) > 50
    for name, tensor in vae.named_parameters():
        assert tensor.dtype is torch.float16
        assert tensor.data_ptr() == before[name]


@pytest.mark.parametrize("precision", ["half", "whole"])
def test_pixels_that_are_not_finite_are_no_image(
    precision: str, request: pytest.FixtureRequest
) -> None:
    demo: DamagedDemo = request.getfixturevalue(precision)
    dtype = demo.modules.vae.dtype
    with (
        demo.damaged("vae", "decoder.conv_out.bias"),  # in one of three channels
        pytest.raises(NumericFault, match="pixels are not finite"),
    ):
        codec(demo.modules.vae).decode(LATENTS)
    assert demo.modules.vae.dtype is dtype


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_are_blamed_and_not_tried_again(
    half: DamagedDemo, value: float
) -> None:
    latents = LATENTS.clone()
    latents[3, 7, 7] = value
    vae = CountingVae(half.modules.vae)
    with pytest.raises(NumericFault, match="latents are not finite"):
        codec(vae).decode(latents)
    assert vae.decodes == 1


def test_a_base_image_whose_latents_are_not_finite_is_a_fault(whole: DamagedDemo) -> None:
    with (
        whole.damaged("vae", "encoder.conv_out.bias"),
        pytest.raises(NumericFault, match="latents of the base image"),
    ):
        codec(whole.modules.vae).encode(np.zeros((64, 64, 3), np.uint8), torch.zeros(4, 8, 8))


def test_a_device_without_memory_for_the_second_decode_ends_the_image_alone(
    half: DamagedDemo,
) -> None:
    vae = CountingVae(half.modules.vae, memory_for=1)
    with (
        half.scaled("conv_in", LARGE),
        pytest.raises(NumericFault, match="pixels are not finite"),
    ):
        codec(vae).decode(LATENTS)
    assert half.modules.vae.dtype is torch.float16


class CountingVae:
    """A VAE on a device that has memory for so many decodes."""

    def __init__(self, vae: Any, memory_for: int = 9) -> None:
        self._vae, self._memory_for = vae, memory_for
        self.decodes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(self, *args: Any, **options: Any) -> Any:
        if self.decodes == self._memory_for:
            raise torch.OutOfMemoryError
        self.decodes += 1
        return self._vae.decode(*args, **options)
