"""DeepCache (Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free") on SDXL's UNet.

A shallow step computes the first convolution, the last residual block and the last convolution. In
place of everything between them stands what a full step has left: the input of the last residual
block without its skip connection. This equals branch 0 (`cache_branch_id=0`) of the package
`DeepCache`. When a step is shallow is the business of `core.diffusion.step_kind`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True, eq=False, weakref_slot=True)
class StepFeatures:
    """The deep features of one sample. The denoiser is the only writer.

    A snapshot does not have them: they take eighty times the memory of latents. A sample is only
    copied out before a full step, which makes them anew.
    """

    positive: torch.Tensor | None = None  # (channels, h/8, w/8)
    negative: torch.Tensor | None = None  # None without guidance at the last full step

    def offload(self) -> None:
        """Move them to the host's memory."""
        self.positive = None if self.positive is None else self.positive.cpu()
        self.negative = None if self.negative is None else self.negative.cpu()


@contextmanager
def kept_features(unet: Any) -> Iterator[list[torch.Tensor]]:
    """Let a full call append the deep features of each row, (channels, h/8, w/8), to a list.

    They are copies, which do not keep the batch. The call's own output is the same as without.
    """
    kept: list[torch.Tensor] = []
    skip_channels = unet.config.block_out_channels[0]

    def keep(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        kept.extend(row[:-skip_channels].clone() for row in args[0])

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def shallow_forward(
    unet: Any,
    rows: torch.Tensor,
    timesteps: torch.Tensor,
    embeds: torch.Tensor,
    added_conditions: Mapping[str, torch.Tensor],
    deep: torch.Tensor,
) -> torch.Tensor:
    """Return what diffusers' `UNet2DConditionModel.forward` does, with these deep features."""
    embedding = unet.time_embedding(unet.get_time_embed(sample=rows, timestep=timesteps), None)
    embedding = embedding + unet.get_aug_embed(
        emb=embedding, encoder_hidden_states=embeds, added_cond_kwargs=added_conditions
    )
    block = unet.up_blocks[-1]
    hidden = block.resnets[-1](torch.cat([deep, unet.conv_in(rows)], dim=1), embedding)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[-1](hidden, encoder_hidden_states=embeds, return_dict=False)[0]
    output: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return output
