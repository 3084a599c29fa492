"""A sample whose latents are on the device, and its copies in the host's memory."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.sample import Sample, map_latents

DeviceSample = Sample[torch.Tensor]  # latents on the device
HostSample = Sample[npt.NDArray[np.float32]]  # latents in the host's memory, ready to travel


def row_count(samples: Iterable[DeviceSample]) -> int:
    """Return the UNet rows that samples need."""
    return sum(sample.rows for sample in samples)


def row_inputs(samples: Iterable[DeviceSample]) -> list[ImageInputs]:
    """Return the inputs of each UNet row of the samples, in the order of `UNetDenoiser`."""
    return [sample.inputs for sample in samples for _ in range(sample.rows)]


def to_host(sample: DeviceSample) -> HostSample:
    """Copy the sample to the host, with memory of its own: a snapshot."""
    return map_latents(sample, lambda latents: latents.cpu().numpy().copy())


def finite_copy(sample: DeviceSample) -> HostSample | None:
    """Copy the sample to the host as `to_host` does; return None if its latents are not finite."""
    copy = to_host(sample)
    return copy if _has_finite_latents(copy) else None


def _has_finite_latents(sample: HostSample) -> bool:
    """Return whether no latent is NaN or infinite: 0.03 ms for an image of a megapixel."""
    tensors = (
        sample.solver_state if sample.latents is None else (sample.latents, *sample.solver_state)
    )
    return all(bool(np.isfinite(tensor).all()) for tensor in tensors)


def to_device(sample: HostSample, device: torch.device) -> DeviceSample:
    """Copy the sample to a device."""
    return map_latents(sample, lambda latents: torch.tensor(latents, device=device))
