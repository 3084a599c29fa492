"""The configs of SDXL's UNet and VAE, with the defaults of the classes in diffusers. No torch.

Where an option would change the architecture into one that is not SDXL's, only its usual value is
accepted.
"""

from math import isqrt
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from serve_app.runtime.checkpoints.network_config import Channels, Layers, NetworkConfig

MAX_LATENT_SIDE = 1024  # sample_size of a model for images of 8192 pixels a side
_Depth = Annotated[int, Field(ge=0, le=128)]  # of a transformer
_Side = Annotated[int, Field(ge=1, le=MAX_LATENT_SIDE)]
_ListedSide = Annotated[list[_Side], Field(min_length=2, max_length=2)]  # height, width
_PerChannel = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
_Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
_DownBlock = Literal["DownBlock2D", "CrossAttnDownBlock2D"]
_UpBlock = Literal["UpBlock2D", "CrossAttnUpBlock2D"]
_Off = Literal[False] | None


class UNetConfig(NetworkConfig):
    """`unet/config.json`: the UNet2DConditionModel of SDXL, and of models distilled from it."""

    sample_size: _Side | _ListedSide | None = None
    in_channels: Literal[4] = 4
    out_channels: Literal[4] = 4
    center_input_sample: bool | None = False
    flip_sin_to_cos: bool | None = True
    freq_shift: FiniteFloat = 0
    down_block_types: list[_DownBlock]
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = (
        "UNetMidBlock2DCrossAttn"
    )
    up_block_types: list[_UpBlock]
    only_cross_attention: Literal[False] | list[Literal[False]] = False
    block_out_channels: list[Channels]
    layers_per_block: Layers | list[Layers] = 2
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: FiniteFloat = 1
    dropout: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    act_fn: _Activation = "silu"
    norm_num_groups: Channels = 32
    norm_eps: FiniteFloat = 1e-5
    cross_attention_dim: Channels | list[Channels] = 1280
    transformer_layers_per_block: _Depth | list[_Depth | list[_Depth]] = 1
    reverse_transformer_layers_per_block: list[_Depth | list[_Depth]] | None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: Channels | list[Channels] = 8  # in truth the number of heads
    num_attention_heads: None = None
    dual_cross_attention: _Off = False
    use_linear_projection: bool | None = False
    class_embed_type: None = None
    addition_embed_type: Literal["text_time"]
    addition_time_embed_dim: Channels
    num_class_embeds: None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default"] = "default"
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Channels | None = None
    time_embedding_act_fn: _Activation | None = None
    timestep_post_act: _Activation | None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    projection_class_embeddings_input_dim: Channels
    attention_type: Literal["default"] | None = "default"
    class_embeddings_concat: _Off = False
    cross_attention_norm: None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = len(self.block_out_channels)
        if not blocks:
            raise ValueError("block_out_channels must not be empty")
        per_block = (
            *("down_block_types", "up_block_types", "only_cross_attention", "layers_per_block"),
            *("cross_attention_dim", "attention_head_dim", "transformer_layers_per_block"),
            "reverse_transformer_layers_per_block",
        )
        for name in per_block:
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != blocks:
                raise ValueError(f"{name} must have an entry for each of {blocks} blocks")
        layers, reverse = (
            self.transformer_layers_per_block,
            self.reverse_transformer_layers_per_block,
        )
        is_nested = isinstance(layers, list) and any(isinstance(entry, list) for entry in layers)
        if is_nested and reverse is None:
            raise ValueError(
                "reverse_transformer_layers_per_block must be given, because "
                "transformer_layers_per_block has lists"
            )
        for name, added in (("", 0), ("reverse_", 1)):
            depths = getattr(self, f"{name}transformer_layers_per_block")
            counts = self.per_block(self.layers_per_block)[:: -1 if name else 1]
            listed = depths if isinstance(depths, list) else counts
            for depth, count in zip(listed, counts, strict=True):
                if isinstance(depth, list) and len(depth) < count + added:
                    raise ValueError(
                        f"{name}transformer_layers_per_block must have lists of {count + added}"
                    )
        if len(set(self.text_dims)) > 1:
            raise ValueError("cross_attention_dim must be the same for all blocks")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups must divide block_out_channels, got {self.norm_num_groups} "
                    f"for {channels}"
                )
            if channels % heads:
                raise ValueError(
                    f"attention_head_dim must divide block_out_channels, got {heads} for {channels}"
                )
        return self

    def per_block(self, value: int | list[int]) -> list[int]:
        """Return one value for each block."""
        return list(value) if isinstance(value, list) else [value] * len(self.block_out_channels)

    @property
    def heads(self) -> list[int]:
        """The number of attention heads in each block."""
        return self.per_block(self.attention_head_dim)

    @property
    def text_dims(self) -> list[int]:
        """The width of the text embeddings that each block attends to: one width in all."""
        return self.per_block(self.cross_attention_dim)

    @property
    def latent_side(self) -> int:
        """The side of the latents it was trained on; of a pair, that of a square as large."""
        if isinstance(self.sample_size, list):
            height, width = self.sample_size
            return isqrt(height * width)
        return 128 if self.sample_size is None else self.sample_size


class VaeConfig(NetworkConfig):
    """`vae/config.json`: an AutoencoderKL for four latent channels."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: list[Literal["DownEncoderBlock2D"]]
    up_block_types: list[Literal["UpDecoderBlock2D"]]
    block_out_channels: list[Channels]
    layers_per_block: Layers = 1
    act_fn: _Activation = "silu"
    latent_channels: Literal[4] = 4
    norm_num_groups: Channels = 32
    sample_size: Channels | Annotated[list[Channels], Field(min_length=2, max_length=2)] = 32
    scaling_factor: Annotated[FiniteFloat, Field(gt=0)] = 0.18215
    shift_factor: FiniteFloat | None = None
    latents_mean: _PerChannel | None = None
    latents_std: _PerChannel | None = None
    force_upcast: bool | None = True
    use_quant_conv: bool | None = True
    use_post_quant_conv: bool | None = True
    mid_block_add_attention: bool | None = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != blocks:
                raise ValueError(f"{name} must have an entry for each of {blocks} blocks")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups must divide block_out_channels, got {self.norm_num_groups} "
                    f"for {channels}"
                )
        if self.latents_std and 0 in self.latents_std:
            raise ValueError("latents_std must not have a zero")
        return self
