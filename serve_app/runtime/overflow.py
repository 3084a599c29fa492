"""Which extensions make an image's numbers overflow, found on small latents."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.finite import is_finite
from serve_app.runtime.parts import Parts

_SIDE = 8  # latent pixels: an overflow depends on weights and prompt, hardly on the image's size
_MAX_STEPS = 8


@torch.inference_mode()
def overflowing_extensions(
    parts: Parts, profile: NumericProfile, device: Device, sample: Sample[torch.Tensor]
) -> tuple[ExtensionRef, ...]:
    """Return the sample's extensions without which its numbers are finite, if that is so.

    A small image of the sample's prompt, guidance and noise levels is made in a few steps of
    Euler's method: with all its extensions, with none, and where there are several with each alone.
    Empty if they can't be blamed: the numbers are finite with them, or are not without.
    """
    refs = sample.active_extensions

    def ends_finite(active: tuple[ExtensionRef, ...]) -> bool:
        return _ends_finite(parts, profile, device, sample, active)

    if not refs or ends_finite(refs) or not ends_finite(()):
        return ()
    alone = tuple(ref for ref in refs if not ends_finite((ref,))) if len(refs) > 1 else refs
    return alone or refs


def _ends_finite(
    parts: Parts,
    profile: NumericProfile,
    device: Device,
    sample: Sample[torch.Tensor],
    extensions: tuple[ExtensionRef, ...],
) -> bool:
    spec, schedule = sample.spec, sample.schedule
    rows = profile.lanes or spec.rows
    parts.extensions.activate(extensions, [sample.inputs] * spec.rows)
    conditioning = parts.conditioner.condition(spec, extensions)
    if not conditioning.is_finite:
        return False
    generator = torch.Generator().manual_seed(spec.seed)
    noise = torch.randn(1, LATENT_CHANNELS, _SIDE, _SIDE, generator=generator)
    levels = _levels(range(schedule.start_index, len(schedule)))
    x = noise.to(device.torch_device) * schedule.sigmas[levels[0]]
    for index, following in zip(levels, (*levels[1:], None), strict=True):
        sigma, timestep = schedule.sigmas[index], schedule.timesteps[index]
        at_step = conditioning.at(replace(sample, index=index).step)
        denoised = parts.denoiser(x, [DenoiserInput(sigma, timestep, at_step)], rows)
        if not is_finite(denoised):
            return False
        target = 0.0 if following is None else schedule.sigmas[following]
        x = denoised + (x - denoised) * (target / sigma)
    return True


def _levels(steps: Sequence[int]) -> list[int]:
    """Return a few steps from the first to the last, evenly spaced."""
    count = min(len(steps), _MAX_STEPS)
    return [steps[number * (len(steps) - 1) // max(1, count - 1)] for number in range(count)]
