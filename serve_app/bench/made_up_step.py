"""The inputs of a UNet step that is measured: shaped like those of images, with made-up values."""

import torch

from serve_app.core.diffusion.spec import PIXELS_PER_LATENT
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.diffusion_configs import UNetConfig
from serve_app.runtime.checkpoints.network_weights import read_config
from serve_app.runtime.lane_counts import Batch, made_up_batch
from serve_app.runtime.networks.conditioning import RowConditioning

_TOKENS, _SIZE_IDS = 77, 6


def made_up_step(checkpoint: Checkpoint, side: int, rows: int, dtype: torch.dtype) -> Batch:
    """Return latents on the CPU and inputs for a step of so many rows of unguided images."""
    unet = read_config(checkpoint.folder, "unet")
    assert isinstance(unet, UNetConfig)
    pooled = unet.projection_class_embeddings_input_dim - _SIZE_IDS * unet.addition_time_embed_dim
    like = RowConditioning(
        torch.empty(_TOKENS, unet.text_dims[0], dtype=dtype),
        torch.empty(pooled, dtype=dtype),
        torch.tensor([side, side, 0, 0, side, side], dtype=dtype),
    )
    latent_side = side // PIXELS_PER_LATENT
    return made_up_batch(like, (latent_side, latent_side), torch.device("cpu"), rows, rows)
