"""Strict mode's promise, checked: a row's bits depend neither on its slot nor on its neighbours."""

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec
from serve_app.core.errors import OperatorError, OutputNotFinite
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.finite import is_finite
from serve_app.runtime.parts import Parts


@torch.inference_mode()
def check_batch_invariance(
    parts: Parts,
    profile: NumericProfile,
    device: Device,
    extensions: tuple[ExtensionRef, ...] = (),
    counts: tuple[int, ...] = (),
) -> tuple[int, ...]:
    """Run made-up batches in two orders and compare them bit by bit. Nothing in fast mode.

    Return those of the numbers of lanes `counts` in which all rows have the bits that they have in
    the profile's own number of lanes; larger images may still need that: see `LaneCounts`.

    Kernels split work over threads, and an uneven split may treat slots differently: see
    `networks.row_layers` for those that are known. Raises `OperatorError`
    when this machine breaks the promise of strict mode with these extensions, and `OutputNotFinite`
    when a result is not finite: NaN is unequal to itself, wherever it comes from.
    """
    if not profile.strict:
        return counts
    generator, lanes = torch.Generator().manual_seed(0), profile.lanes
    parts.extensions.activate(extensions, [NO_INPUTS] * lanes)
    for shape, words in (((16, 16), ""), ((13, 19), ""), ((16, 16), "BREAK")):
        x = torch.randn(lanes, LATENT_CHANNELS, *shape, generator=generator)
        x = x.to(device.torch_device)
        specs = [_unguided_spec(f"{words} proof {lane}") for lane in range(lanes)]
        inputs = [
            DenoiserInput(1.0 + i, 900.0 - i, parts.conditioner.condition(spec, extensions).at(0))
            for i, spec in enumerate(specs)
        ]
        denoised = parts.denoiser(x, inputs, lanes)
        if not is_finite(denoised):
            raise output_not_finite("UNet", profile)
        rolled = parts.denoiser(x.roll(1, 0), inputs[-1:] + inputs[:-1], lanes)
        if not torch.equal(denoised, rolled.roll(-1, 0)):
            raise OperatorError(
                f"MODEL_DETERMINISM=strict can't be kept on {profile.device} with "
                f"{lanes} lanes and {profile.cpu_threads} CPU threads: a picture's bits "
                "would depend on its neighbours",
                remedy="Set MODEL_CPU_THREADS to a power of two, or MODEL_DETERMINISM=fast",
            )
        counts = tuple(
            count
            for count in counts
            if count == lanes
            or torch.equal(parts.denoiser(x[:count], inputs[:count], count), denoised[:count])
        )
    return counts


def output_not_finite(network: str, profile: NumericProfile) -> OutputNotFinite:
    """Return the error of a network that fails its check when it is loaded."""
    return OutputNotFinite(
        f"the {network}'s output is not finite (NaN or infinite)",
        subject=profile.name,
        remedy="Check the weights with: aura doctor --deep",
    )


def _unguided_spec(prompt: str) -> ImageSpec:
    return ImageSpec(prompt=prompt, seed=0, width=128, height=128, steps=1, guidance=1.0)
