"""The only `from_pretrained`: a checkpoint folder to modules on a device.

Knows no samples and no steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serve_app.runtime.checkpoint import Checkpoint
from serve_app.runtime.device import Device
from serve_app.runtime.libraries import diffusers

EncodeText = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of one stage, on their device, in evaluation mode."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    encode_text: EncodeText  # one prompt to (1, 77, width) and pooled (1, projection)


def load(checkpoint: Checkpoint, device: Device) -> Modules:
    """The modules of a checkpoint, ready to run. Only safetensors, only local files.

    Text is encoded by the pipeline's own `encode_prompt`, so it is stock to the bit.
    """
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        dtype={"default": device.dtype, "vae": device.vae_dtype},
        variant=checkpoint.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,  # where installed it would alter every picture
    ).to(device.torch_device)
    if device.attention == "xformers":
        pipeline.unet.enable_xformers_memory_efficient_attention()
    for network in (pipeline.unet, pipeline.vae):
        network.eval().requires_grad_(False)

    def encode_text(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt,
            device=device.torch_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return embeds, pooled

    return Modules(pipeline.unet, pipeline.vae, encode_text)
