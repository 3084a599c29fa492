"""The device of conditioning, with text encoders on a pretended one."""

from dataclasses import fields, replace

import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from tests.support.analytic_model import CHECKPOINT, BlankTextEncoders

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)


class OnDevice(torch.Tensor):
    """A tensor on a pretended device, which `cpu` copies to the host."""

    def cpu(self, *_: object, **__: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class TextEncodersOnDevice(BlankTextEncoders):
    """Text encoders whose results are on the pretended device."""

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = super().encode(prompt, chunks)
        return embeds.as_subclass(OnDevice), pooled.as_subclass(OnDevice)


@pytest.mark.parametrize("negative", [None, "blur"])
def test_conditioning_leaves_nothing_on_the_device(negative: str | None) -> None:
    conditioner = Conditioner(TextEncodersOnDevice(), CHECKPOINT)
    conditioning = conditioner.condition(replace(SPEC, negative_prompt=negative))
    assert conditioning.negative is not None
    rows = conditioning.positive, conditioning.negative
    tensors = [getattr(row, field.name) for row in rows for field in fields(row)]
    assert {type(tensor) for tensor in tensors} == {torch.Tensor}
