"""The tensors of SDXL's UNet, from its config: diffusers' names and the published ones. No torch.

Equal to the state dict of diffusers' UNet2DConditionModel: tests compare many configs.
"""

from collections.abc import Iterator

from serve_app.runtime.checkpoints.diffusion_configs import UNetConfig
from serve_app.runtime.checkpoints.tensor_layout import Tensors, conv, linear, norm

Layers = int | list[int]


def unet_tensors(config: UNetConfig) -> Tensors:
    """Yield every tensor with its shape and both of its names.

    The blocks of the published layout have one number for every layer and every resampling, in the
    order in which they run.
    """
    channels = config.block_out_channels
    time_dim = config.time_embedding_dim or channels[0] * 4
    yield from conv("conv_in", "input_blocks.0.0", 4, channels[0])
    yield from linear("time_embedding.linear_1", "time_embed.0", channels[0], time_dim)
    yield from linear("time_embedding.linear_2", "time_embed.2", time_dim, time_dim)
    labels = config.projection_class_embeddings_input_dim
    yield from linear("add_embedding.linear_1", "label_emb.0.0", labels, time_dim)
    yield from linear("add_embedding.linear_2", "label_emb.0.2", time_dim, time_dim)
    blocks = _Blocks(config, time_dim)
    yield from blocks.down()
    yield from blocks.middle()
    yield from blocks.up()
    yield from norm("conv_norm_out", "out.0", channels[0])
    yield from conv("conv_out", "out.2", channels[0], 4)


class _Blocks:
    """The three parts of the U."""

    def __init__(self, config: UNetConfig, time_dim: int) -> None:
        self._config = config
        self._time_dim = time_dim
        self._layers = config.per_block(config.layers_per_block)
        self._transformers = _listed(
            config.transformer_layers_per_block, len(config.block_out_channels)
        )
        self._reversed_transformers = (
            config.reverse_transformer_layers_per_block or self._transformers[::-1]
        )

    def down(self) -> Tensors:
        config, number = self._config, 0  # of the last published block
        channels = [config.block_out_channels[0], *config.block_out_channels]
        for block, kind in enumerate(config.down_block_types):
            inputs, outputs = channels[block : block + 2]
            depths = _depths(self._transformers[block], self._layers[block])
            for layer, depth in enumerate(depths):
                number += 1
                name, published = f"down_blocks.{block}", f"input_blocks.{number}"
                yield from self._resnet(
                    f"{name}.resnets.{layer}",
                    f"{published}.0",
                    outputs if layer else inputs,
                    outputs,
                )
                if kind == "CrossAttnDownBlock2D":
                    attention = f"{name}.attentions.{layer}"
                    yield from self._transformer(attention, f"{published}.1", outputs, depth)
            if block + 1 < len(config.block_out_channels):
                number += 1
                sampler = f"down_blocks.{block}.downsamplers.0.conv"
                yield from conv(sampler, f"input_blocks.{number}.0.op", outputs, outputs)

    def middle(self) -> Tensors:
        kind, channels = self._config.mid_block_type, self._config.block_out_channels[-1]
        if kind is None:
            return
        yield from self._resnet("mid_block.resnets.0", "middle_block.0", channels, channels)
        if kind == "UNetMidBlock2DCrossAttn":
            depth = _depths(self._transformers[-1], 1)[0]
            attention = "mid_block.attentions.0"
            yield from self._transformer(attention, "middle_block.1", channels, depth)
            yield from self._resnet("mid_block.resnets.1", "middle_block.2", channels, channels)

    def up(self) -> Tensors:
        config, number = self._config, -1
        channels = config.block_out_channels[::-1]
        for block, kind in enumerate(config.up_block_types):
            outputs = channels[block]
            before = channels[max(block - 1, 0)]
            skipped = channels[min(block + 1, len(channels) - 1)]
            depths = _depths(self._reversed_transformers[block], self._layers[-1 - block] + 1)
            attends = kind == "CrossAttnUpBlock2D"
            for layer, depth in enumerate(depths):
                number += 1
                name, published = f"up_blocks.{block}", f"output_blocks.{number}"
                skip = skipped if layer == len(depths) - 1 else outputs
                inputs = outputs if layer else before
                yield from self._resnet(
                    f"{name}.resnets.{layer}", f"{published}.0", inputs + skip, outputs
                )
                if attends:
                    attention = f"{name}.attentions.{layer}"
                    yield from self._transformer(attention, f"{published}.1", outputs, depth)
            if block + 1 < len(channels):
                sampler, slot = f"up_blocks.{block}.upsamplers.0.conv", 2 if attends else 1
                published = f"output_blocks.{number}.{slot}.conv"
                yield from conv(sampler, published, outputs, outputs)

    def _resnet(self, name: str, published: str, inputs: int, outputs: int) -> Tensors:
        yield from norm(f"{name}.norm1", f"{published}.in_layers.0", inputs)
        yield from conv(f"{name}.conv1", f"{published}.in_layers.2", inputs, outputs)
        time_embedding = f"{published}.emb_layers.1"
        yield from linear(f"{name}.time_emb_proj", time_embedding, self._time_dim, outputs)
        yield from norm(f"{name}.norm2", f"{published}.out_layers.0", outputs)
        yield from conv(f"{name}.conv2", f"{published}.out_layers.3", outputs, outputs)
        if inputs != outputs:
            skip = f"{published}.skip_connection"
            yield from conv(f"{name}.conv_shortcut", skip, inputs, outputs, kernel=1)

    def _transformer(self, name: str, published: str, channels: int, depth: int) -> Tensors:
        yield from norm(f"{name}.norm", f"{published}.norm", channels)
        for projection in ("proj_in", "proj_out"):
            names = f"{name}.{projection}", f"{published}.{projection}"
            if self._config.use_linear_projection:
                yield from linear(*names, channels, channels)
            else:
                yield from conv(*names, channels, channels, kernel=1)
        for layer in range(depth):
            inner = f"transformer_blocks.{layer}."
            for tensor, shape in self._transformer_block(channels):
                yield f"{name}.{inner}{tensor}", f"{published}.{inner}{tensor}", shape

    def _transformer_block(self, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the tensors of one block, whose names are the same in both layouts."""
        for attention, width in (("attn1", channels), ("attn2", self._config.text_dims[0])):
            yield f"{attention}.to_q.weight", (channels, channels)
            yield f"{attention}.to_k.weight", (channels, width)
            yield f"{attention}.to_v.weight", (channels, width)
            yield f"{attention}.to_out.0.weight", (channels, channels)
            yield f"{attention}.to_out.0.bias", (channels,)
        for number in (1, 2, 3):
            yield f"norm{number}.weight", (channels,)
            yield f"norm{number}.bias", (channels,)
        yield "ff.net.0.proj.weight", (8 * channels, channels)  # GEGLU: values and gates
        yield "ff.net.0.proj.bias", (8 * channels,)
        yield "ff.net.2.weight", (channels, 4 * channels)
        yield "ff.net.2.bias", (channels,)


def _listed(layers: int | list[int | list[int]], blocks: int) -> list[Layers]:
    return [layers] * blocks if isinstance(layers, int) else list(layers)


def _depths(layers: Layers, count: int) -> list[int]:
    """Return the number of transformer blocks beside each of `count` resnets."""
    return [layers] * count if isinstance(layers, int) else [*layers, *[0] * count][:count]
