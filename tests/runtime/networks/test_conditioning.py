"""Where guides lie, with encoders on a device that is not there."""

from dataclasses import fields, replace

import pytest
import torch

from serve_app.core.diffusion.spec import ImageSpec, Lora
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from tests.support.analytic_model import CHECKPOINT, BlankTextEncoders

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)


class Far(torch.Tensor):
    """Lies on a device, as the encoders' own tensors do: `cpu` brings it here."""

    def cpu(self, *_: object, **__: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class FarPrompts(BlankTextEncoders):
    """Encodes on a device."""

    def encode(
        self, reading: TokenizedPrompt, chunks: int, loras: tuple[Lora, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = super().encode(reading, chunks)
        return embeds.as_subclass(Far), pooled.as_subclass(Far)


@pytest.mark.parametrize("negative", [None, "blur"])
def test_nothing_of_a_guide_stays_on_the_device(negative: str | None) -> None:
    guide = Conditioner(FarPrompts(), CHECKPOINT).condition(replace(SPEC, negative_prompt=negative))
    assert guide.negative is not None
    parts = [getattr(one, f.name) for one in (guide.positive, guide.negative) for f in fields(one)]
    assert {type(part) for part in parts} == {torch.Tensor}
