"""Latents to pixels, pixels to latents, pixels to a PNG file.

Knows no samples and no schedule. One picture per VAE call, always: like the UNet, its last bits
depend on how many there are.
"""

import zlib
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3)
# `bench png` has the figures. Filtered pixels of a picture hardly ever repeat but in runs: looking
# for runs alone is quicker than looking for repeats, leaves the codes to the shades, and so is
# smaller too; only flat drawings come out larger than at level 6, and those are small anyhow.
PNG_LEVEL, PNG_STRATEGY = 1, zlib.Z_RLE


class ImageCodec(Protocol):
    """What the engine's model makes pictures with."""

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """The picture of denoised latents (4, h/8, w/8)."""

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """The latents (4, h/8, w/8), fp32, of a picture; the noise picks from the posterior."""


class SdxlVae:
    """SDXL's VAE. Equals `VaeImageProcessor` and `AutoencoderKL` as stock pipelines use them."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self._vae = vae
        self._device = device
        self._dtype: torch.dtype = vae.dtype
        config = vae.config
        self._scale = float(config.scaling_factor)
        self._mean = self._channels(getattr(config, "latents_mean", None), 0.0)
        self._std = self._channels(getattr(config, "latents_std", None), 1.0)

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """See `Pixels`."""
        raw = latents[None] * self._std / self._scale + self._mean
        pixels = self._vae.decode(raw.to(self._dtype), return_dict=False)[0][0].float()
        shades = (pixels / 2 + 0.5).clamp(0, 1) * 255
        picture: RgbImage = shades.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return picture

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """See `Pixels`."""
        shades = torch.from_numpy(picture.copy()).to(self._device).permute(2, 0, 1)[None]
        pixels = (shades.float() / 255) * 2 - 1
        posterior = self._vae.encode(pixels.to(self._dtype)).latent_dist
        raw = posterior.mean.float() + posterior.std.float() * posterior_noise[None]
        latents: torch.Tensor = ((raw - self._mean) * self._scale / self._std)[0]
        return latents

    def _channels(self, values: Any, default: float) -> torch.Tensor:
        listed = [default] * 4 if values is None else list(values)
        return torch.tensor(listed, device=self._device).view(1, -1, 1, 1)


def encode_png(picture: RgbImage) -> bytes:
    """The picture as a PNG file; equal pictures give equal bytes."""
    file = BytesIO()
    Image.fromarray(picture).save(
        file, format="PNG", compress_level=PNG_LEVEL, compress_type=PNG_STRATEGY
    )
    return file.getvalue()
