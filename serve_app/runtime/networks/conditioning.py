"""Conditioning: the text embeddings and time ids that a sample's UNet rows receive.

How a prompt is encoded is the business of `text_encoders`.
"""

from dataclasses import dataclass, field, replace

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.prompt import MAX_CHUNKS
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.networks.finite import is_finite
from serve_app.runtime.networks.text_encoders import TextEncoders, TokenizedPrompt

# diffusers' defaults for aesthetic_score and negative_aesthetic_score of the refiner's pipeline
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


@dataclass(frozen=True, slots=True, eq=False)
class RowConditioning:
    """The inputs of one UNet row besides latents and timestep."""

    embeds: torch.Tensor  # (77 * chunks, cross_attention_dim): diffusers' prompt_embeds
    pooled: torch.Tensor  # (projection_dim,): diffusers' pooled_prompt_embeds
    time_ids: torch.Tensor  # (6,), or (5,) with an aesthetic score: diffusers' add_time_ids

    @property
    def is_finite(self) -> bool:
        """Whether no embedding is NaN or infinite."""
        return is_finite(self.embeds) and is_finite(self.pooled)


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """Positive and negative conditioning of one sample, equally long.

    It stays on the CPU, because a long prompt takes 20 MB per sample in fp16 and hundreds of
    samples may wait. The denoiser keeps a copy on the device for the samples of its last batch.
    """

    positive: RowConditioning
    negative: RowConditioning | None  # None without classifier-free guidance
    guidance_scale: float

    @property
    def is_finite(self) -> bool:
        """Whether no embedding is NaN or infinite: 0.1 ms for a prompt of SDXL, on the CPU."""
        return self.positive.is_finite and (self.negative is None or self.negative.is_finite)


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledConditioning:
    """The conditioning of a sample at each of its steps, all equally long.

    Steps with the same prompts have the same object: the denoiser compares by identity.
    """

    by_step: tuple[Conditioning, ...]
    first_step: int = 0  # that of `by_step[0]`; the steps before have run
    chunks: int = 1  # of 77 tokens
    warnings: tuple[str, ...] = ()
    _unguided: dict[Conditioning, Conditioning] = field(default_factory=dict, init=False)

    def at(self, step: int, *, guided: bool = True) -> Conditioning:
        """Return the conditioning of a step, or only its positive part, as without guidance."""
        conditioning = self.by_step[step - self.first_step]
        if guided or conditioning.negative is None:
            return conditioning
        if conditioning not in self._unguided:
            unguided = replace(conditioning, negative=None, guidance_scale=1.0)
            self._unguided[conditioning] = unguided
        return self._unguided[conditioning]

    @property
    def is_finite(self) -> bool:
        """Whether no embedding of any step is NaN or infinite."""
        return all(conditioning.is_finite for conditioning in dict.fromkeys(self.by_step))


class Conditioner:
    """Makes the conditioning of a spec.

    Equals `encode_prompt` and `_get_add_time_ids` of `StableDiffusionXLPipeline` for the base and
    of `StableDiffusionXLImg2ImgPipeline` for the refiner.
    """

    def __init__(self, text_encoders: TextEncoders, checkpoint: Checkpoint) -> None:
        self._text_encoders = text_encoders
        self._requires_aesthetics_score = checkpoint.requires_aesthetics_score
        self._force_zeros = checkpoint.force_zeros_for_empty_prompt

    def condition(
        self, spec: ImageSpec, extensions: tuple[ExtensionRef, ...] = (), first_step: int = 0
    ) -> ScheduledConditioning:
        """Return the conditioning of a spec, by text encoders in which `extensions` are active.

        Steps before `first_step` have run, and prompts of theirs alone are not encoded. But all
        prompts of an image decide its length, so that it is the same at every step: shorter ones
        are padded with chunks of "", which AUTOMATIC1111 calls pad_cond_uncond. Together they have
        no more chunks than one prompt may have.

        An absent negative prompt differs from an empty one: with force_zeros_for_empty_prompt its
        embeddings are zeros.
        """
        prompts = spec.prompts_by_step
        is_zeros = spec.negative_prompt is None and self._force_zeros
        is_encoded = spec.is_guided and not is_zeros
        negatives = spec.negative_prompts_by_step if is_encoded else ("",) * len(prompts)
        max_chunks = MAX_CHUNKS // max(len(set(prompts)), len(set(negatives)))
        positive_tokens = self._tokenize(prompts, "prompt", max_chunks)
        negative_tokens = self._tokenize(
            negatives if is_encoded else (), "negative prompt", max_chunks
        )
        tokenized = (*positive_tokens.values(), *negative_tokens.values())
        chunks = max(len(tokens.chunks) for tokens in tokenized)
        first_step = min(first_step, len(prompts) - 1)  # a sample that is only decoded
        pairs = tuple(zip(prompts, negatives, strict=True))[first_step:]
        positives = {
            text: self._encode(spec, positive_tokens[text], chunks, AESTHETIC_SCORE, extensions)
            for text in dict.fromkeys(text for text, _ in pairs)
        }
        negative_rows: dict[str, RowConditioning | None] = {"": None}
        if is_encoded:
            negative_rows = {
                text: self._encode(
                    spec, negative_tokens[text], chunks, NEGATIVE_AESTHETIC_SCORE, extensions
                )
                for text in dict.fromkeys(text for _, text in pairs)
            }
        elif spec.is_guided:
            like = next(iter(positives.values()))
            negative_rows[""] = RowConditioning(
                torch.zeros_like(like.embeds),
                torch.zeros_like(like.pooled),
                self._time_ids(spec, NEGATIVE_AESTHETIC_SCORE, like.embeds.dtype),
            )
        scale = spec.guidance if spec.is_guided else 1.0
        conditionings = {
            pair: Conditioning(positives[pair[0]], negative_rows[pair[1]], scale)
            for pair in dict.fromkeys(pairs)
        }
        warnings = dict.fromkeys(warning for tokens in tokenized for warning in tokens.warnings)
        return ScheduledConditioning(
            tuple(conditionings[pair] for pair in pairs), first_step, chunks, tuple(warnings)
        )

    def _tokenize(
        self, prompts: tuple[str, ...], name: str, max_chunks: int
    ) -> dict[str, TokenizedPrompt]:
        return {
            prompt: self._text_encoders.tokenize(prompt, name, max_chunks)
            for prompt in dict.fromkeys(prompts)
        }

    def forget_prompts(self) -> None:
        """Encode every prompt anew from here on, also those that were encoded before."""
        self._text_encoders.clear_cache()

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
