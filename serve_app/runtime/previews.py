"""Previews: what an image may become, in colours that are guessed from latents without a decode.

The VAE of a latent diffusion model maps each latent to 8 x 8 pixels whose mean colour is close to
linear in it, so 15 numbers are enough for a picture of one pixel per latent. They are fitted to the
checkpoint's own VAE when it is loaded, by least squares over made-up pictures.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serve_app.core.diffusion.spec import LATENT_CHANNELS, PIXELS_PER_LATENT
from serve_app.core.errors import NumericFault
from serve_app.runtime.live_sample import DeviceSample
from serve_app.runtime.memory.upload import download
from serve_app.runtime.networks.vae import ImageCodec, RgbImage

logger = logging.getLogger("aura.runtime")

_SIDE = 128  # pixels of a made-up picture
_CELLS = (4, 8)  # colours per side of the made-up pictures, each as patches and as gradients


@dataclass(frozen=True, slots=True, eq=False)
class LatentToRgb:
    """A linear map from latents to colours, on the device."""

    weight: torch.Tensor  # (3, 4), fp32
    bias: torch.Tensor  # (3,), fp32

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pictures of latents (n, 4, h/8, w/8), as uint8 (n, h/8, w/8, 3).

        Nothing waits for the device.
        """
        levels = torch.einsum("ncij,rc->nijr", latents, self.weight) + self.bias
        return (levels.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class StepPreviews:
    """The previews of some samples of a step; readable when the device has done the step."""

    ids: tuple[str, ...]
    indexes: tuple[int, ...]  # of the step that each has taken
    pixels: torch.Tensor  # (n, h/8, w/8, 3), uint8, in the host's memory

    def images(self) -> list[tuple[str, int, RgbImage]]:
        """Return each sample's id, the index of its step, and its preview."""
        return list(zip(self.ids, self.indexes, self.pixels.numpy(), strict=True))


def step_previews(
    samples: Sequence[DeviceSample],
    wanted: Collection[str],
    denoised: torch.Tensor,
    to_rgb: LatentToRgb | None,
) -> StepPreviews | None:
    """Return the previews of those samples whose ids are wanted; None if there are none.

    `denoised` is what the step predicts of each sample, (samples, 4, h/8, w/8).
    """
    rows = [row for row, sample in enumerate(samples) if sample.id in wanted]
    if not rows or to_rgb is None:
        return None
    chosen = [samples[row] for row in rows]
    pixels = to_rgb(torch.stack([denoised[row] for row in rows]))
    return StepPreviews(
        tuple(sample.id for sample in chosen),
        tuple(sample.index for sample in chosen),
        download(pixels),
    )


@torch.inference_mode()
def fit_latent_to_rgb(codec: ImageCodec, device: torch.device) -> LatentToRgb | None:
    """Return the map that is right for a VAE; None if it can't encode the made-up pictures."""
    colours, latents = [], []
    no_noise = torch.zeros(
        LATENT_CHANNELS, *(2 * [_SIDE // PIXELS_PER_LATENT]), device=device
    )  # the mean of the posterior
    try:
        for picture in made_up_pictures():
            latents.append(codec.encode(picture, no_noise).double().cpu().flatten(1).T)
            colours.append(_mean_colours(picture))
    except NumericFault as fault:
        logger.warning("there are no previews: %s", fault)
        return None
    known = torch.cat(latents)
    with_one = torch.cat([known, torch.ones(len(known), 1, dtype=known.dtype)], 1)
    solution = torch.linalg.lstsq(with_one, torch.cat(colours)).solution.float().to(device)
    return LatentToRgb(solution[:LATENT_CHANNELS].T.contiguous(), solution[LATENT_CHANNELS])


def made_up_pictures() -> list[RgbImage]:
    """Return pictures with colours of the whole cube, in patches and in gradients."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for cells in _CELLS:
        colours = torch.rand(1, 3, cells, cells, generator=generator)
        for mode in ("nearest", "bilinear"):
            levels = torch.nn.functional.interpolate(colours, (_SIDE, _SIDE), mode=mode)[0]
            pictures.append((levels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    return pictures


def _mean_colours(picture: RgbImage) -> torch.Tensor:
    """Return the mean colour of the pixels of each latent, from 0 to 1: (latents, 3), fp64."""
    side = _SIDE // PIXELS_PER_LATENT
    blocks = picture.reshape(side, PIXELS_PER_LATENT, side, PIXELS_PER_LATENT, 3)
    return torch.from_numpy(blocks.astype(np.float64).mean((1, 3)).reshape(-1, 3) / 255)
