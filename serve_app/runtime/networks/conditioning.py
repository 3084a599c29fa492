"""Prompts to what the rows of one stage are told.

Knows no latents and no schedule, and nothing of how a prompt is encoded.
"""

from dataclasses import dataclass

import torch

from serve_app.core.diffusion.spec import ImageSpec, Lora
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.networks.text_encoders import TextEncoders, TokenizedPrompt

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what the refiner was trained to be told


@dataclass(frozen=True, slots=True, eq=False)
class RowConditioning:
    """What one UNet row is told besides noise and time."""

    embeds: torch.Tensor  # (77 * chunks, width)
    pooled: torch.Tensor  # (projection,)
    time_ids: torch.Tensor  # (6,) or, with an aesthetic score, (5,)


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """The conditions of one sample, equally long: `away` is None when it is not guided.

    On the CPU: long prompts take 20 MB a sample in fp16, and hundreds may wait. Of those that step
    the denoiser has a copy on the device.
    """

    positive: RowConditioning
    negative: RowConditioning | None
    guidance_scale: float
    chunks: int = 1
    warnings: tuple[str, ...] = ()


class Conditioner:
    """Makes the guide of a spec, as stock diffusers would for this stage."""

    def __init__(self, text_encoders: TextEncoders, checkpoint: Checkpoint):
        self._prompts = text_encoders
        self._checkpoint = checkpoint

    def condition(self, spec: ImageSpec, loras: tuple[Lora, ...] = ()) -> Conditioning:
        """The guide of a spec by text encoders that wear `loras`. A negative prompt that is absent
        is not the same as an empty one.

        The shorter of two prompts is filled up with chunks of "": pad_cond_uncond, as
        AUTOMATIC1111 calls it.
        """
        readings = [self._prompts.tokenize(spec.prompt, "prompt")]
        absent = spec.negative_prompt is None and self._checkpoint.force_zeros_for_empty_prompt
        if spec.is_guided and not absent:
            readings.append(self._prompts.tokenize(spec.negative_prompt or "", "negative prompt"))
        chunks = max(len(reading.chunks) for reading in readings)
        warnings = tuple(warning for reading in readings for warning in reading.warnings)
        towards = self._condition(spec, readings[0], chunks, AESTHETIC_SCORE, loras)
        if not spec.is_guided:
            return Conditioning(towards, None, 1.0, chunks, warnings)
        if absent:
            away = RowConditioning(
                torch.zeros_like(towards.embeds),
                torch.zeros_like(towards.pooled),
                self._ids(spec, NEGATIVE_AESTHETIC_SCORE, towards.embeds.dtype),
            )
        else:
            away = self._condition(spec, readings[1], chunks, NEGATIVE_AESTHETIC_SCORE, loras)
        return Conditioning(towards, away, spec.guidance, chunks, warnings)

    def _condition(
        self,
        spec: ImageSpec,
        reading: TokenizedPrompt,
        chunks: int,
        score: float,
        loras: tuple[Lora, ...],
    ) -> RowConditioning:
        embeds, pooled = self._prompts.encode(reading, chunks, loras)
        return RowConditioning(embeds.cpu(), pooled.cpu(), self._ids(spec, score, embeds.dtype))

    def _ids(self, spec: ImageSpec, score: float, dtype: torch.dtype) -> torch.Tensor:
        """Original size and crop, then an aesthetic score or the target size."""
        size, crop = [spec.height, spec.width], [0, 0]
        ids = (
            [*size, *crop, score]
            if self._checkpoint.requires_aesthetics_score
            else [*size, *crop, *size]
        )
        return torch.tensor(ids, dtype=dtype)
