"""The demo's networks before training: SDXL's own classes at toy size.

Base and refiner together take less than 20 MB in fp16.
"""

import torch
from torch import nn

from serve_app.runtime.networks.quiet import diffusers, transformers

LATENT_SIDE = 16  # 128 pixels a side
PROJECTION, TIME_DIM = 64, 32
ENCODER_1, ENCODER_2 = 64, 96  # widths


def new_vae() -> "diffusers.AutoencoderKL":
    """Return a VAE of 8 x 8 pixels to 4 numbers, initialized so that a tiny one learns.

    With torch's own initialization most of the signal is lost in the layers, and with it the first
    thousand steps. Here convolutions keep the signal's scale, residual branches start at zero, and
    resamplers do little but resample.
    """
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=2,  # more groups of so few channels erase flat colour
        latent_channels=4,
        sample_size=LATENT_SIDE * 8,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
        elif "samplers" in name:
            with torch.no_grad():
                module.weight *= 0.1
                module.weight += nn.init.dirac_(torch.empty_like(module.weight))
    return vae


def new_encoder(width: int, tokens: int, *, projects: bool) -> nn.Module:
    """Return a CLIP text encoder of three layers; of SDXL's two, only the second projects.

    The end-of-text id must be the highest: CLIP pools at its position.
    """
    config = transformers.CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=width * 4,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        projection_dim=PROJECTION,
        hidden_act="gelu" if projects else "quick_gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
        attn_implementation="eager",
    )
    make = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    encoder: nn.Module = make(config)
    return encoder


def new_base() -> "diffusers.UNet2DConditionModel":
    """Return base's UNet: attention at 8 x 8 and 4 x 4 latents, both encoders, six time ids."""
    return _unet((64, 96, 96), (False, True, True), ENCODER_1 + ENCODER_2, 6)


def new_refiner() -> "diffusers.UNet2DConditionModel":
    """Return the refiner's UNet: the second encoder only, five time ids, the last a score."""
    return _unet((48, 64, 64), (False, True, True), ENCODER_2, 5)


def _unet(
    channels: tuple[int, ...], attends: tuple[bool, ...], context: int, ids: int
) -> "diffusers.UNet2DConditionModel":
    unet = diffusers.UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=[("CrossAttn" if a else "") + "DownBlock2D" for a in attends],
        up_block_types=[("CrossAttn" if a else "") + "UpBlock2D" for a in reversed(attends)],
        transformer_layers_per_block=1,
        attention_head_dim=tuple(width // 32 for width in channels),
        cross_attention_dim=context,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=ids * TIME_DIM + PROJECTION,
        norm_num_groups=8,
    )
    return unet.to(memory_format=torch.channels_last)
