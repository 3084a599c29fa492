"""The VAE: latents to pixels and pixels to latents.

One image per VAE call, always: as with the UNet, the last bits of the result depend on the batch
size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.core.errors import NumericFault
from serve_app.runtime.checkpoints.file_markers import LatentScaling
from serve_app.runtime.memory.device import is_out_of_memory

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image, all of whose values were finite, and what its caller should know of the decode."""

    image: RgbImage
    warnings: tuple[str, ...] = ()


class ImageCodec(Protocol):
    """What a stage's model needs of a VAE. Tests use a double with known results."""

    def decode(self, latents: torch.Tensor) -> DecodedImage:
        """Return the image of denoised latents (4, h/8, w/8), fp32.

        Raises `NumericFault` when latents or pixels are not finite.
        """

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """Return the latents (4, h/8, w/8), fp32, of an image.

        `posterior_noise`, of the shape of the latents, picks the sample of the VAE's posterior.
        Raises `NumericFault` when the latents are not finite.
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

    def decode(self, latents: torch.Tensor) -> DecodedImage:
        """See `ImageCodec`.

        A VAE in half precision whose pixels are not finite decodes once more in fp32, which is what
        `force_upcast` does for every image in diffusers. That depends on the latents alone, so an
        image has the same bytes in any company.
        """
        raw = latents[None] * self._std / self._scaling_factor + self._mean
        image, latents_are_finite, pixels_are_finite = self._decode(raw, self._dtype)
        if not latents_are_finite or pixels_are_finite or self._dtype is torch.float32:
            check_decoded(latents=latents_are_finite, pixels=pixels_are_finite)
            return DecodedImage(image)
        with self._upcast():
            image, _, pixels_are_finite = self._decode(raw, torch.float32)
        check_decoded(latents=True, pixels=pixels_are_finite)
        half = str(self._dtype).removeprefix("torch.")
        return DecodedImage(image, (f"the VAE overflowed in {half} and was run in float32",))

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """See `ImageCodec`."""
        levels = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1)[None]
        pixels = (levels.float() / 255) * 2 - 1
        posterior = self._vae.encode(pixels.to(self._dtype)).latent_dist
        raw = posterior.mean.float() + posterior.std.float() * posterior_noise[None]
        latents: torch.Tensor = ((raw - self._mean) * self._scaling_factor / self._std)[0]
        if not latents.isfinite().all():
            raise NumericFault("the latents of the base image are not finite (NaN or infinite)")
        return latents

    def _decode(self, raw: torch.Tensor, dtype: torch.dtype) -> tuple[RgbImage, bool, bool]:
        """Return the image of unscaled latents, and whether latents and pixels were finite.

        Both answers travel in the copy of the image to the host, so they cost no wait.
        """
        decoded = self._vae.decode(raw.to(dtype), return_dict=False)[0][0].float()
        levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        finite = torch.stack([raw.isfinite().all(), decoded.isfinite().all()]).to(torch.uint8)
        copied = torch.cat([levels.flatten(), finite]).cpu().numpy()
        image: RgbImage = copied[:-2].reshape(levels.shape)
        return image, bool(copied[-2]), bool(copied[-1])

    @contextmanager
    def _upcast(self) -> Iterator[None]:
        """Have the weights in fp32; then the very same tensors as before.

        Raises `NumericFault` where the device has no memory for that.
        """
        tensors = [*self._vae.parameters(), *self._vae.buffers()]
        originals = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.float()
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise _pixels_not_finite() from None
            raise
        finally:
            for tensor, original in zip(tensors, originals, strict=True):
                tensor.data = original

    def _per_channel(self, values: Sequence[float] | None, *, default: float) -> torch.Tensor:
        """Return one value per latent channel, (1, 4, 1, 1), fp32."""
        listed = [default] * LATENT_CHANNELS if values is None else list(values)
        return torch.tensor(listed, device=self._device).view(1, -1, 1, 1)


def check_decoded(*, latents: bool, pixels: bool) -> None:
    """Raise `NumericFault` unless an image's latents and its pixels were finite."""
    if not latents:
        raise latents_not_finite()
    if not pixels:
        raise _pixels_not_finite()


def latents_not_finite() -> NumericFault:
    """Return the error of an image whose latents are not finite."""
    return NumericFault("the image's latents are not finite (NaN or infinite)")


def _pixels_not_finite() -> NumericFault:
    return NumericFault("the image's pixels are not finite (NaN or infinite)")
