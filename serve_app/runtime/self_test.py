"""`SelfTest`: a tiny picture that the networks made when they were loaded, and must make again.

It tells bad hardware, or weights that have changed in memory, from an image whose own numbers
overflow: callers' images can't make it fail.
"""

import logging

import numpy as np
import torch

from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec
from serve_app.core.errors import NumericFault
from serve_app.runtime.batch_invariance import output_not_finite
from serve_app.runtime.memory.device import Device, is_out_of_memory
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.finite import is_finite
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.parts import Parts

logger = logging.getLogger("aura.runtime")

_SPEC = ImageSpec(
    prompt="a red circle on a white background",
    seed=0,
    width=128,
    height=128,
    steps=1,
    guidance=5.0,
)
_MAX_LATENT_DIFFERENCE = 0.05  # in fast mode: share of the largest latent
_MAX_LEVEL_DIFFERENCE = 4  # in fast mode: of 255, the mean over the picture


class SelfTest:
    """One prompt, one step of 16 x 16 latents and their pixels, without extensions.

    The first run is recorded. Raises `OutputNotFinite`, with the numeric profile as its subject, if
    its output is not finite.
    """

    def __init__(self, parts: Parts, profile: NumericProfile, device: Device) -> None:
        self._parts, self._profile, self._device = parts, profile, device
        latents = self._denoise()
        if not is_finite(latents):
            raise output_not_finite("UNet", profile)
        try:
            image = self._parts.image_codec.decode(latents).image
        except NumericFault as fault:
            raise output_not_finite("VAE", profile) from fault
        self._latents, self._image = latents.cpu(), image

    def failure(self) -> str:
        """Run the test; return "" if the picture is as recorded, or else what differs.

        In strict mode every bit must be equal; in fast mode, where kernels may differ from call to
        call, the picture must be finite and close.
        """
        try:
            latents = self._denoise()
            image = self._parts.image_codec.decode(latents).image
        except NumericFault as fault:
            return fault.problem
        except Exception as error:
            if is_out_of_memory(error):  # says nothing of the numbers
                return ""
            logger.exception("the self-test could not run")
            return f"it could not run: {type(error).__name__}"
        if not self._is_same(latents.cpu(), image):
            return "the picture has changed since the model was loaded"
        return ""

    @torch.inference_mode()
    def _denoise(self) -> torch.Tensor:
        """Return the denoised latents, (4, 16, 16), of the prompt; encode it anew."""
        parts, rows = self._parts, self._profile.lanes or _SPEC.rows
        parts.extensions.activate((), [NO_INPUTS] * rows)
        parts.conditioner.forget_prompts()
        conditioning = parts.conditioner.condition(_SPEC).at(0)
        generator = torch.Generator().manual_seed(_SPEC.seed)
        x = torch.randn(1, LATENT_CHANNELS, *_SPEC.latent_shape, generator=generator)
        x = x.to(self._device.torch_device)
        return parts.denoiser(x, [DenoiserInput(1.0, 900.0, conditioning)], rows)[0]

    def _is_same(self, latents: torch.Tensor, image: RgbImage) -> bool:
        if self._profile.strict:
            return torch.equal(latents, self._latents) and np.array_equal(image, self._image)
        largest = _MAX_LATENT_DIFFERENCE * max(1.0, float(self._latents.abs().max()))
        difference = np.abs(image.astype(np.int16) - self._image).mean()
        is_close = (latents - self._latents).abs().max() <= largest  # NaN is not
        return bool(is_close) and bool(difference <= _MAX_LEVEL_DIFFERENCE)
