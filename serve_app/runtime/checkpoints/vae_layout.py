"""The tensors of SDXL's VAE, from its config: diffusers' names and the published ones. No torch.

Equal to the state dict of diffusers' AutoencoderKL: tests compare many configs.
"""

from serve_app.runtime.checkpoints.diffusion_configs import VaeConfig
from serve_app.runtime.checkpoints.tensor_layout import Tensors, conv, linear, norm

ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def vae_tensors(config: VaeConfig) -> Tensors:
    """Yield every tensor with its shape and both of its names."""
    if config.use_quant_conv:
        yield from conv("quant_conv", "quant_conv", 8, 8, kernel=1)
    if config.use_post_quant_conv:
        yield from conv("post_quant_conv", "post_quant_conv", 4, 4, kernel=1)
    yield from _encoder(config)
    yield from _decoder(config)


def _encoder(config: VaeConfig) -> Tensors:
    channels = config.block_out_channels
    yield from conv("encoder.conv_in", "encoder.conv_in", 3, channels[0])
    for block, outputs in enumerate(channels):
        inputs = channels[max(block - 1, 0)]
        name, published = f"encoder.down_blocks.{block}", f"encoder.down.{block}"
        for layer in range(config.layers_per_block):
            yield from _resnet(
                f"{name}.resnets.{layer}",
                f"{published}.block.{layer}",
                outputs if layer else inputs,
                outputs,
            )
        if block + 1 < len(channels):
            sampler = f"{published}.downsample.conv"
            yield from conv(f"{name}.downsamplers.0.conv", sampler, outputs, outputs)
    yield from _middle("encoder", config)
    yield from norm("encoder.conv_norm_out", "encoder.norm_out", channels[-1])
    yield from conv("encoder.conv_out", "encoder.conv_out", channels[-1], 8)  # mean and variance


def _decoder(config: VaeConfig) -> Tensors:
    channels = config.block_out_channels[::-1]
    yield from conv("decoder.conv_in", "decoder.conv_in", 4, channels[0])
    yield from _middle("decoder", config)
    for block, outputs in enumerate(channels):
        inputs = channels[max(block - 1, 0)]
        level = len(channels) - 1 - block  # the published numbers count from the image
        name, published = f"decoder.up_blocks.{block}", f"decoder.up.{level}"
        for layer in range(config.layers_per_block + 1):
            yield from _resnet(
                f"{name}.resnets.{layer}",
                f"{published}.block.{layer}",
                outputs if layer else inputs,
                outputs,
            )
        if block + 1 < len(channels):
            sampler = f"{published}.upsample.conv"
            yield from conv(f"{name}.upsamplers.0.conv", sampler, outputs, outputs)
    yield from norm("decoder.conv_norm_out", "decoder.norm_out", channels[-1])
    yield from conv("decoder.conv_out", "decoder.conv_out", channels[-1], 3)


def _middle(side: str, config: VaeConfig) -> Tensors:
    channels, name = config.block_out_channels[-1], f"{side}.mid_block"
    for layer in (0, 1):
        published = f"{side}.mid.block_{layer + 1}"
        yield from _resnet(f"{name}.resnets.{layer}", published, channels, channels)
    if config.mid_block_add_attention:
        attention, published = f"{name}.attentions.0", f"{side}.mid.attn_1"
        yield from norm(f"{attention}.group_norm", f"{published}.norm", channels)
        for part, published_part in ATTENTION.items():
            names = f"{attention}.{part}", f"{published}.{published_part}"
            yield from linear(*names, channels, channels)


def _resnet(name: str, published: str, inputs: int, outputs: int) -> Tensors:
    yield from norm(f"{name}.norm1", f"{published}.norm1", inputs)
    yield from conv(f"{name}.conv1", f"{published}.conv1", inputs, outputs)
    yield from norm(f"{name}.norm2", f"{published}.norm2", outputs)
    yield from conv(f"{name}.conv2", f"{published}.conv2", outputs, outputs)
    if inputs != outputs:
        shortcut = f"{published}.nin_shortcut"
        yield from conv(f"{name}.conv_shortcut", shortcut, inputs, outputs, kernel=1)
