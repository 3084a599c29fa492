"""The VAE: latents to pixels and pixels to latents.

One image per VAE call, always: as with the UNet, the last bits of the result depend on the batch
size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.runtime.checkpoints.file_markers import LatentScaling

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3)


class ImageCodec(Protocol):
    """What a stage's model needs of a VAE. Tests use a double with known results."""

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """Return the image of denoised latents (4, h/8, w/8), fp32."""

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """Return the latents (4, h/8, w/8), fp32, of an image.

        `posterior_noise`, of the shape of the latents, picks the sample of the VAE's posterior.
        """


class SdxlVae:
    """SDXL's VAE. Equals `VaeImageProcessor` and `AutoencoderKL` in stock pipelines."""

    def __init__(
        self, vae: Any, device: torch.device, scaling: LatentScaling | None = None
    ) -> None:
        """`scaling` replaces that of the VAE's config, which a single file may contradict."""
        self._vae = vae  # AutoencoderKL
        self._device = device
        self._dtype: torch.dtype = vae.dtype
        config = vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        self._scaling_factor = scaling.scaling_factor if scaling else float(config.scaling_factor)
        self._mean = self._per_channel(scaling.mean if scaling else mean, default=0.0)
        self._std = self._per_channel(scaling.std if scaling else std, default=1.0)

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """See `ImageCodec`."""
        raw = latents[None] * self._std / self._scaling_factor + self._mean
        decoded = self._vae.decode(raw.to(self._dtype), return_dict=False)[0][0].float()
        levels = (decoded / 2 + 0.5).clamp(0, 1) * 255
        image: RgbImage = levels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return image

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """See `ImageCodec`."""
        levels = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1)[None]
        pixels = (levels.float() / 255) * 2 - 1
        posterior = self._vae.encode(pixels.to(self._dtype)).latent_dist
        raw = posterior.mean.float() + posterior.std.float() * posterior_noise[None]
        latents: torch.Tensor = ((raw - self._mean) * self._scaling_factor / self._std)[0]
        return latents

    def _per_channel(self, values: Sequence[float] | None, *, default: float) -> torch.Tensor:
        """Return one value per latent channel, (1, 4, 1, 1), fp32."""
        listed = [default] * LATENT_CHANNELS if values is None else list(values)
        return torch.tensor(listed, device=self._device).view(1, -1, 1, 1)
