"""Prompt to embeddings for one stage, remembered by prompt.

Knows no latents and no schedule. One prompt per call, always: the number of prompts in a call moves
the last bits of each.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch

from serve_app.core.spec import ImageSpec
from serve_app.runtime.checkpoint import Checkpoint
from serve_app.runtime.loading import EncodeText

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what the refiner was trained to be told
_REMEMBERED = 128  # prompts; about 0.6 MB each for SDXL in fp16


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What one UNet row is told besides noise and time."""

    embeds: torch.Tensor  # (77, width)
    pooled: torch.Tensor  # (projection,)
    ids: torch.Tensor  # (6,) or, with an aesthetic score, (5,)


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """The conditions of one sample: `away` is None when it is not guided."""

    towards: Condition
    away: Condition | None
    scale: float


class Conditioner:
    """Makes the guide of a spec, as stock diffusers would for this stage."""

    def __init__(self, encode_text: EncodeText, checkpoint: Checkpoint, device: torch.device):
        self._encode_text = encode_text
        self._checkpoint = checkpoint
        self._device = device
        self._texts: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def guide(self, spec: ImageSpec) -> Guide:
        """The guide of a spec. A negative prompt that is absent is not the same as an empty one."""
        towards = self._condition(spec, spec.prompt, AESTHETIC_SCORE)
        if not spec.guided:
            return Guide(towards, None, 1.0)
        if spec.negative_prompt is None and self._checkpoint.zeros_for_absent:
            away = Condition(
                torch.zeros_like(towards.embeds),
                torch.zeros_like(towards.pooled),
                self._ids(spec, NEGATIVE_AESTHETIC_SCORE, towards.embeds.dtype),
            )
        else:
            away = self._condition(spec, spec.negative_prompt or "", NEGATIVE_AESTHETIC_SCORE)
        return Guide(towards, away, spec.guidance)

    def _condition(self, spec: ImageSpec, text: str, score: float) -> Condition:
        embeds, pooled = self._encoded(text)
        return Condition(embeds[0], pooled[0], self._ids(spec, score, embeds.dtype))

    def _ids(self, spec: ImageSpec, score: float, dtype: torch.dtype) -> torch.Tensor:
        """Original size and crop, then an aesthetic score or the target size."""
        size, crop = [spec.height, spec.width], [0, 0]
        ids = [*size, *crop, score] if self._checkpoint.aesthetics else [*size, *crop, *size]
        return torch.tensor(ids, dtype=dtype, device=self._device)

    def _encoded(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        if text in self._texts:
            self._texts.move_to_end(text)
        else:
            self._texts[text] = self._encode_text(text)
            if len(self._texts) > _REMEMBERED:
                self._texts.popitem(last=False)
        return self._texts[text]
