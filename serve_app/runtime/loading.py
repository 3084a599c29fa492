"""The only `from_pretrained`: a checkpoint folder to modules, in the CPU's memory as yet.

Knows no samples and no steps, and not how much of it the device can hold: see `memory`.
"""

from dataclasses import dataclass
from typing import Any

from serve_app.runtime.checkpoint import Checkpoint
from serve_app.runtime.device import Device
from serve_app.runtime.libraries import diffusers
from serve_app.runtime.prompts import ClipPrompts


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of one stage, in evaluation mode."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    prompts: ClipPrompts


def load(checkpoint: Checkpoint, device: Device) -> Modules:
    """The modules of a checkpoint as the device wants them, not on it yet.

    Only safetensors, only local files.
    """
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        dtype={"default": device.dtype, "vae": device.vae_dtype},
        variant=checkpoint.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,  # where installed it would alter every picture
    )
    if device.attention == "xformers":
        pipeline.unet.enable_xformers_memory_efficient_attention()
    for network in (pipeline.unet, pipeline.vae):
        network.eval().requires_grad_(False)
    first, second = (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    )
    encoders = (
        [first, second] if pipeline.text_encoder is not None else [second]
    )  # the refiner has one
    return Modules(pipeline.unet, pipeline.vae, ClipPrompts(encoders, device.torch_device))
