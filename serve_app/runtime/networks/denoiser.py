"""(x, sigma, t, conditioning) -> denoised: the contract of every UNet here.

Guidance, input scaling, padding and dtype are behind it, as in k-diffusion's wrappers of the same
contract. x is in the convention image + sigma * noise. Samplers and schedules are elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from serve_app.core.diffusion.preconditioning import Preconditioning
from serve_app.runtime.memory.upload import upload
from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning


@dataclass(frozen=True, slots=True)
class DenoiserInput:
    """The noise level of one sample, and its conditioning."""

    sigma: float
    timestep: float
    conditioning: Conditioning


class Denoiser(Protocol):
    """What a stage's model steps with. Tests use doubles with known results."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """Return the denoised latents of x, both (samples, 4, h/8, w/8), fp32, on one device.

        The network is called once, with exactly `lanes` rows, its padded batch size.
        """


class UNetDenoiser:
    """SDXL's UNet behind the contract.

    Equals one step of `StableDiffusionXLPipeline` up to the scheduler: `scale_model_input` of
    `EulerDiscreteScheduler` or `EDMEulerScheduler`, the UNet, classifier-free guidance, and the
    predicted original sample.
    """

    def __init__(self, unet: Any, preconditioning: Preconditioning, dtype: torch.dtype) -> None:
        self._unet = unet  # UNet2DConditionModel
        self._preconditioning = preconditioning
        self._dtype = dtype
        self._last: tuple[tuple[Conditioning, ...], _BatchConditioning] | None = None

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """See `Denoiser`. Raises `ValueError` for more rows than `lanes`."""
        batch = self._gather(tuple(i.conditioning for i in inputs), lanes, x.device)
        levels = torch.tensor([[i.sigma for i in inputs], [i.timestep for i in inputs]])
        sigma, timesteps = upload(levels, x.device)  # both in one copy
        sigma = sigma.view(-1, 1, 1, 1)
        scaled: torch.Tensor = self._preconditioning.scaled_input(x, sigma)
        rows = x.new_zeros(lanes, *x.shape[1:], dtype=self._dtype)  # (lanes, 4, h/8, w/8)
        rows[: len(batch.owner)] = scaled[batch.owner].to(self._dtype)
        row_timesteps = x.new_zeros(lanes)
        row_timesteps[: len(batch.owner)] = timesteps[batch.owner]
        predicted: torch.Tensor = self._unet(
            rows,
            row_timesteps,
            encoder_hidden_states=batch.embeds,
            added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": batch.time_ids},
            return_dict=False,
        )[0].float()
        positive, negative = predicted[batch.positive], predicted[batch.negative]
        guided = negative + batch.guidance_scale * (positive - negative)
        denoised: torch.Tensor = self._preconditioning.denoised(x, sigma, guided)
        return denoised

    def _gather(
        self, conditionings: tuple[Conditioning, ...], lanes: int, device: torch.device
    ) -> "_BatchConditioning":
        """Return the conditioning of a batch; reuse the last one while its samples are the same.

        No other conditioning is on the device.
        """
        if self._last is not None:
            previous, batch = self._last
            is_same = len(previous) == len(conditionings) and all(
                a is b for a, b in zip(previous, conditionings, strict=True)
            )
            if is_same and batch.embeds.shape[0] == lanes:
                return batch
        self._last = None  # frees its memory before the next batch takes more
        batch = _stack(conditionings, lanes, device)
        self._last = (conditionings, batch)
        return batch


@dataclass(frozen=True, slots=True, eq=False)
class _BatchConditioning:
    """The conditioning of a batch on the device, padded to `lanes` rows, and whose row is which.

    The negative row of a sample without guidance is its positive row.
    """

    embeds: torch.Tensor  # (lanes, 77 * chunks, cross_attention_dim)
    pooled: torch.Tensor  # (lanes, projection_dim)
    time_ids: torch.Tensor  # (lanes, 5 or 6)
    owner: torch.Tensor  # (rows,): the sample of each row
    positive: torch.Tensor  # (samples,): the positive row of each sample
    negative: torch.Tensor  # (samples,): the negative row of each sample
    guidance_scale: torch.Tensor  # (samples, 1, 1, 1)


def _stack(
    conditionings: Sequence[Conditioning], lanes: int, device: torch.device
) -> _BatchConditioning:
    """Stack the rows of all samples, each sample's negative row before its positive one."""
    rows: list[RowConditioning] = []
    owner, positive, negative = [], [], []
    for sample, conditioning in enumerate(conditionings):
        negative.append(len(rows))
        if conditioning.negative is not None:
            rows.append(conditioning.negative)
            owner.append(sample)
        positive.append(len(rows))
        rows.append(conditioning.positive)
        owner.append(sample)
    if len(rows) > lanes:
        raise ValueError(f"{len(rows)} rows do not fit in {lanes} lanes")

    def padded(parts: list[torch.Tensor]) -> torch.Tensor:
        padding = [torch.zeros_like(parts[0])] * (lanes - len(parts))
        return upload(torch.stack([*parts, *padding]), device)

    scales = [conditioning.guidance_scale for conditioning in conditionings]
    return _BatchConditioning(
        embeds=padded([row.embeds for row in rows]),
        pooled=padded([row.pooled for row in rows]),
        time_ids=padded([row.time_ids for row in rows]),
        owner=upload(torch.tensor(owner), device),
        positive=upload(torch.tensor(positive), device),
        negative=upload(torch.tensor(negative), device),
        guidance_scale=upload(torch.tensor(scales), device).view(-1, 1, 1, 1),
    )
