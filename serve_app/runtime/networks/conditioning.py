"""Conditioning: the text embeddings and time ids that a sample's UNet rows receive.

How a prompt is encoded is the business of `text_encoders`.
"""

from dataclasses import dataclass

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.networks.text_encoders import TextEncoders, TokenizedPrompt

# diffusers' defaults for aesthetic_score and negative_aesthetic_score of the refiner's pipeline
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


@dataclass(frozen=True, slots=True, eq=False)
class RowConditioning:
    """The inputs of one UNet row besides latents and timestep."""

    embeds: torch.Tensor  # (77 * chunks, cross_attention_dim): diffusers' prompt_embeds
    pooled: torch.Tensor  # (projection_dim,): diffusers' pooled_prompt_embeds
    time_ids: torch.Tensor  # (6,), or (5,) with an aesthetic score: diffusers' add_time_ids


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """Positive and negative conditioning of one sample, equally long.

    It stays on the CPU, because a long prompt takes 20 MB per sample in fp16 and hundreds of
    samples may wait. The denoiser keeps a copy on the device for the samples of its last batch.
    """

    positive: RowConditioning
    negative: RowConditioning | None  # None without classifier-free guidance
    guidance_scale: float
    chunks: int = 1  # of 77 tokens
    warnings: tuple[str, ...] = ()


class Conditioner:
    """Makes the conditioning of a spec.

    Equals `encode_prompt` and `_get_add_time_ids` of `StableDiffusionXLPipeline` for the base and
    of `StableDiffusionXLImg2ImgPipeline` for the refiner.
    """

    def __init__(self, text_encoders: TextEncoders, checkpoint: Checkpoint) -> None:
        self._text_encoders = text_encoders
        self._requires_aesthetics_score = checkpoint.requires_aesthetics_score
        self._force_zeros = checkpoint.force_zeros_for_empty_prompt

    def condition(self, spec: ImageSpec, extensions: tuple[ExtensionRef, ...] = ()) -> Conditioning:
        """Return the conditioning of a spec, by text encoders in which `extensions` are active.

        An absent negative prompt differs from an empty one: with force_zeros_for_empty_prompt its
        embeddings are zeros. The shorter of two prompts is padded with chunks of "", which
        AUTOMATIC1111 calls pad_cond_uncond.
        """
        prompt = self._text_encoders.tokenize(spec.prompt, "prompt")
        if not spec.is_guided:
            chunks = len(prompt.chunks)
            positive = self._encode(spec, prompt, chunks, AESTHETIC_SCORE, extensions)
            return Conditioning(positive, None, 1.0, chunks, prompt.warnings)
        if spec.negative_prompt is None and self._force_zeros:
            chunks = len(prompt.chunks)
            positive = self._encode(spec, prompt, chunks, AESTHETIC_SCORE, extensions)
            negative = RowConditioning(
                torch.zeros_like(positive.embeds),
                torch.zeros_like(positive.pooled),
                self._time_ids(spec, NEGATIVE_AESTHETIC_SCORE, positive.embeds.dtype),
            )
            return Conditioning(positive, negative, spec.guidance, chunks, prompt.warnings)
        other = self._text_encoders.tokenize(spec.negative_prompt or "", "negative prompt")
        chunks = max(len(prompt.chunks), len(other.chunks))
        return Conditioning(
            self._encode(spec, prompt, chunks, AESTHETIC_SCORE, extensions),
            self._encode(spec, other, chunks, NEGATIVE_AESTHETIC_SCORE, extensions),
            spec.guidance,
            chunks,
            prompt.warnings + other.warnings,
        )

    def _encode(
        self,
        spec: ImageSpec,
        prompt: TokenizedPrompt,
        chunks: int,
        score: float,
        extensions: tuple[ExtensionRef, ...],
    ) -> RowConditioning:
        embeds, pooled = self._text_encoders.encode(prompt, chunks, extensions)
        time_ids = self._time_ids(spec, score, embeds.dtype)
        return RowConditioning(embeds.cpu(), pooled.cpu(), time_ids)

    def _time_ids(self, spec: ImageSpec, score: float, dtype: torch.dtype) -> torch.Tensor:
        """Return original size and crop, then the aesthetic score or the target size."""
        size, crop = [spec.height, spec.width], [0, 0]
        last = [score] if self._requires_aesthetics_score else size
        return torch.tensor([*size, *crop, *last], dtype=dtype)
