"""From a checkpoint and a few wishes to a model that is ready to step: the runtime's front door.

Knows no settings files and no Ray: used by a replica, a test and a benchmark alike.
"""

import logging

from serve_app.core.safety import SafetyFilter
from serve_app.runtime.checkpoint import Checkpoint
from serve_app.runtime.conditioning import Conditioner
from serve_app.runtime.denoiser import UNetDenoiser
from serve_app.runtime.device import Device
from serve_app.runtime.loading import load
from serve_app.runtime.model import StageModel
from serve_app.runtime.pixels import VaePixels

logger = logging.getLogger("aura.runtime")


def lanes_for(images: int, *, strict: bool) -> int:
    """The fixed number of UNet rows for so many guided images: 0 in fast mode.

    A power of two: kernels split such a batch evenly over threads, so that no slot is special.
    """
    return 1 << (2 * images - 1).bit_length() if strict else 0


def assemble(
    checkpoint: Checkpoint, device: Device, *, lanes: int, safety: SafetyFilter | None = None
) -> StageModel:
    """The stage's model, loaded and, in strict mode, proved to keep its promise here.

    Raises `OperatorError` when it can't be kept.
    """
    modules = load(checkpoint, device)
    model = StageModel(
        profile=device.profile(checkpoint.stage, lanes, checkpoint.name),
        device=device,
        conditioner=Conditioner(modules.prompts, checkpoint, device.torch_device),
        denoiser=UNetDenoiser(modules.unet, checkpoint.noise.prediction_type, device.dtype),
        pixels=VaePixels(modules.vae, device.torch_device),
        safety=safety,
    )
    model.prove_lanes()
    logger.info("%s is ready as %s: %s", checkpoint.name, checkpoint.stage, model.profile)
    return model
