"""(x, sigma, t, conditioning) -> denoised: the contract of every UNet here.

Guidance, input scaling, padding and dtype are behind it, as in k-diffusion's wrappers of the same
contract. x is in the convention image + sigma * noise. Samplers and schedules are elsewhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import torch

from serve_app.core.diffusion.preconditioning import Preconditioning
from serve_app.runtime.memory.upload import upload
from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning
from serve_app.runtime.networks.kept_conditioning import forget_conditioning
from serve_app.runtime.networks.step_cache import StepFeatures, kept_features, shallow_forward


@dataclass(frozen=True, slots=True)
class DenoiserInput:
    """The noise level of one sample, and its conditioning."""

    sigma: float
    timestep: float
    conditioning: Conditioning
    features: StepFeatures | None = None  # of a sample with a step cache
    shallow: bool = False  # whether they are reused, and not made anew; the same in a whole call


class Denoiser(Protocol):
    """What a stage's model steps with. Tests use doubles with known results."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """Return the denoised latents of x, both (samples, 4, h/8, w/8), fp32, on one device.

        The network is called once, with exactly `lanes` rows, its padded batch size.
        """

    def forget(self) -> None:
        """Drop what is kept of the last call."""


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
        self._on_device = WeakSet[StepFeatures]()  # of the samples of the last call alone

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """See `Denoiser`. Raises `ValueError` for more rows than `lanes`."""
        batch = self._gather(tuple(i.conditioning for i in inputs), lanes, x.device)
        levels = torch.tensor([[i.sigma for i in inputs], [i.timestep for i in inputs]])
        sigma, timesteps = upload(levels, x.device)  # both in one copy
        sigma = sigma.view(-1, 1, 1, 1)
        scaled: torch.Tensor = self._preconditioning.scaled_input(x, sigma)
        rows, timesteps = scaled[batch.owner].to(self._dtype), timesteps[batch.owner]
        if padding := lanes - len(rows):
            rows = torch.cat([rows, rows.new_zeros(padding, *rows.shape[1:])])
            timesteps = torch.cat([timesteps, timesteps.new_zeros(padding)])
        predicted = self._predict(rows, timesteps, batch, inputs).float()
        positive, negative = predicted[batch.positive], predicted[batch.negative]
        guided = negative + batch.guidance_scale * (positive - negative)
        denoised: torch.Tensor = self._preconditioning.denoised(x, sigma, guided)
        return denoised

    def forget(self) -> None:
        """See `Denoiser`."""
        self._last = None
        forget_conditioning(self._unet)

    def _predict(
        self,
        rows: torch.Tensor,
        timesteps: torch.Tensor,
        batch: "_BatchConditioning",
        inputs: Sequence[DenoiserInput],
    ) -> torch.Tensor:
        """Return the network's output for the rows; read or write the features of the inputs."""
        added = {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
        if self._on_device or any(i.features is not None for i in inputs):
            self._offload_other_features(inputs)
        if inputs[0].shallow:
            deep = _deep_features(inputs, rows)
            return shallow_forward(self._unet, rows, timesteps, batch.embeds, added, deep)
        keeping: AbstractContextManager[list[torch.Tensor]] = nullcontext([])
        if self._on_device:
            keeping = kept_features(self._unet)
        with keeping as kept:
            predicted: torch.Tensor = self._unet(
                rows,
                timesteps,
                encoder_hidden_states=batch.embeds,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        if kept:
            _keep_features(inputs, kept)
        return predicted

    def _offload_other_features(self, inputs: Sequence[DenoiserInput]) -> None:
        """Move the features of samples that do not take part to the host's memory."""
        own = WeakSet(i.features for i in inputs if i.features is not None)
        for features in self._on_device - own:
            features.offload()
        self._on_device = own

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


def _row_numbers(inputs: Sequence[DenoiserInput]) -> Iterator[tuple[int | None, int]]:
    """Yield the numbers of each sample's negative row, if it has one, and of its positive one."""
    row = 0
    for i in inputs:
        negative = None if i.conditioning.negative is None else row
        row += 1 if negative is None else 2
        yield negative, row - 1


def _keep_features(inputs: Sequence[DenoiserInput], rows: Sequence[torch.Tensor]) -> None:
    """Leave each sample with a step cache the features of its own rows."""
    for i, (negative, positive) in zip(inputs, _row_numbers(inputs), strict=True):
        if i.features is not None:
            i.features.positive = rows[positive]
            i.features.negative = None if negative is None else rows[negative]


def _deep_features(inputs: Sequence[DenoiserInput], rows: torch.Tensor) -> torch.Tensor:
    """Return the features of all rows, on their device. Raises `ValueError` for a missing one."""
    by_row: dict[int, torch.Tensor] = {}
    for i, (negative, positive) in zip(inputs, _row_numbers(inputs), strict=True):
        own = i.features or StepFeatures()
        for row, features in ((negative, own.negative), (positive, own.positive)):
            if row is None:
                continue
            if features is None:
                raise ValueError("a shallow step without the features of a full one")
            by_row[row] = features
    deep = rows.new_zeros(len(rows), *by_row[0].shape)
    for row, features in by_row.items():
        deep[row] = features.to(rows.device)
    return deep


@dataclass(frozen=True, slots=True, eq=False)
class _BatchConditioning:
    """The conditioning of a batch on the device, padded to `lanes` rows, and whose row is which.

    The negative row of a sample without guidance is its positive row.
    """

    embeds: torch.Tensor  # (lanes, 77 * chunks, cross_attention_dim)
    pooled: torch.Tensor  # (lanes, projection_dim)
    time_ids: torch.Tensor  # (lanes, 5 or 6)
    owner: torch.Tensor  # (rows,): the sample of each row
    positive: slice | torch.Tensor  # (samples,): the positive row of each sample
    negative: slice | torch.Tensor  # (samples,): the negative row of each sample
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
        positive=_indices(positive, device),
        negative=_indices(negative, device),
        guidance_scale=upload(torch.tensor(scales), device).view(-1, 1, 1, 1),
    )


def _indices(rows: list[int], device: torch.device) -> slice | torch.Tensor:
    """Return what selects these rows, ascending: a slice if it can, which copies nothing."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if rows == list(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return upload(torch.tensor(rows), device)
