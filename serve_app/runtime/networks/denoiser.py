"""(x, sigma, t, guide) -> denoised: the one contract of every network here.

Guidance, input scaling, padding and dtype hide behind it. Knows no samplers, schedules or samples.
x is in the convention picture + sigma * noise; k-diffusion's wrappers state the same contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning


@dataclass(frozen=True, slots=True)
class DenoiserInput:
    """Where on its way a sample stands, and what it is told."""

    sigma: float
    timestep: float
    conditioning: Conditioning


class Denoiser(Protocol):
    """What a stage's model steps with. The tests' doubles are others, with known answers."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """The denoised pictures at `points`, shape and device of x: (samples, 4, h/8, w/8), fp32.

        The network is called once, with exactly `lanes` rows.
        """


class UNetDenoiser:
    """SDXL's UNet behind the contract. Equals the arithmetic of one step of the stock pipeline."""

    def __init__(self, unet: Any, prediction_type: str, dtype: torch.dtype) -> None:
        self._unet = unet
        self._predicts_v = prediction_type == "v_prediction"
        self._dtype = dtype
        self._told: tuple[tuple[Conditioning, ...], _BatchConditioning] | None = (
            None  # the last batch's
        )

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """See `Denoiser`."""
        told = self._gather(tuple(p.conditioning for p in inputs), lanes, x.device)
        sigma = x.new_tensor([p.sigma for p in inputs]).view(-1, 1, 1, 1)
        times = x.new_tensor([p.timestep for p in inputs])
        scaled = x * (1 / (sigma**2 + 1).sqrt())
        rows = x.new_zeros(lanes, *x.shape[1:], dtype=self._dtype)  # (lanes, 4, h/8, w/8)
        rows[: len(told.owner)] = scaled[told.owner].to(self._dtype)
        row_times = x.new_zeros(lanes)
        row_times[: len(told.owner)] = times[told.owner]
        predicted: torch.Tensor = self._unet(
            rows,
            row_times,
            encoder_hidden_states=told.embeds,
            added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.ids},
            return_dict=False,
        )[0].float()
        towards, away = predicted[told.towards], predicted[told.away]
        guided = away + told.scale * (towards - away)
        denoised: torch.Tensor = x - sigma * guided
        if self._predicts_v:
            denoised = guided * (-sigma / (sigma**2 + 1).sqrt()) + x / (sigma**2 + 1)
        return denoised

    def _gather(
        self, guides: tuple[Conditioning, ...], lanes: int, device: torch.device
    ) -> "_BatchConditioning":
        """The conditions of a batch side by side; kept while the same samples step together.

        They are all that lies on the device of anybody's guide.
        """
        if self._told is not None:
            known, told = self._told
            same = len(known) == len(guides) and all(map(lambda a, b: a is b, known, guides))
            if same and told.embeds.shape[0] == lanes:
                return told
        self._told = None  # has left the device before the next come
        told = _side_by_side(guides, lanes, device)
        self._told = (guides, told)
        return told


@dataclass(frozen=True, slots=True, eq=False)
class _BatchConditioning:
    """The conditions of a batch, and which row is whose. An unguided sample's `away` is itself."""

    embeds: torch.Tensor  # (lanes, 77 * chunks, width)
    pooled: torch.Tensor  # (lanes, projection)
    ids: torch.Tensor  # (lanes, 5 or 6)
    owner: torch.Tensor  # (rows,) sample of each row
    towards: torch.Tensor  # (samples,) row of each sample
    away: torch.Tensor  # (samples,)
    scale: torch.Tensor  # (samples, 1, 1, 1)


def _side_by_side(
    guides: Sequence[Conditioning], lanes: int, device: torch.device
) -> _BatchConditioning:
    conditions: list[RowConditioning] = []
    owner, towards, away = [], [], []
    for number, guide in enumerate(guides):
        away.append(len(conditions))
        if guide.negative is not None:
            conditions.append(guide.negative)
            owner.append(number)
        towards.append(len(conditions))
        conditions.append(guide.positive)
        owner.append(number)
    if len(conditions) > lanes:
        raise ValueError(f"{len(conditions)} rows do not fit in {lanes} lanes")

    def padded(parts: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack([part.to(device) for part in parts])
        side = stacked.new_zeros(lanes, *stacked.shape[1:])
        side[: len(parts)] = stacked
        return side

    return _BatchConditioning(
        embeds=padded([c.embeds for c in conditions]),
        pooled=padded([c.pooled for c in conditions]),
        ids=padded([c.time_ids for c in conditions]),
        owner=torch.tensor(owner, device=device),
        towards=torch.tensor(towards, device=device),
        away=torch.tensor(away, device=device),
        scale=torch.tensor([g.guidance_scale for g in guides], device=device).view(-1, 1, 1, 1),
    )
