"""The configs of CLIP's two halves, with the defaults of the classes in transformers. No torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from serve_app.runtime.checkpoints.network_config import Channels, Layers, NetworkConfig

_PerColor = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]


class _ClipConfig(NetworkConfig):
    """What CLIP's two halves have in common."""

    hidden_size: Channels = 512
    intermediate_size: Channels = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Channels = 8
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] = (
        "quick_gelu"
    )
    layer_norm_eps: FiniteFloat = 1e-5
    attention_dropout: FiniteFloat | None = 0.0

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} for "
                f"{self.hidden_size}"
            )
        return self


class TextEncoderConfig(_ClipConfig):
    """`text_encoder/config.json`: the text half of a CLIP."""

    vocab_size: Annotated[int, Field(ge=1, le=1_000_000)] = 49_408
    projection_dim: Channels | None = 512
    max_position_embeddings: Annotated[int, Field(ge=77, le=65_536)] = 77
    eos_token_id: Annotated[int, Field(ge=0)] = 49_407  # the pooled embedding is taken there
    bos_token_id: int | None = 49_406
    pad_token_id: int | None = 1

    @model_validator(mode="after")
    def _check_eos(self) -> Self:
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(
                f"eos_token_id must be below vocab_size, got {self.eos_token_id} for "
                f"{self.vocab_size}"
            )
        return self


class ProjectedTextEncoderConfig(TextEncoderConfig):
    """`text_encoder_2/config.json`: the text half of a CLIP, with its projection."""

    projection_dim: Channels = 512


class VisionConfig(_ClipConfig):
    """The `vision_config` of a safety checker: the image half of a CLIP."""

    hidden_size: Channels = 768
    intermediate_size: Channels = 3072
    num_attention_heads: Channels = 12
    num_channels: Literal[3] = 3
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    patch_size: Annotated[int, Field(ge=1, le=4096)] = 32

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size must be at most image_size, got {self.patch_size}")
        return self


class SafetyCheckerConfig(NetworkConfig):
    """The `config.json` of a safety checker.

    A `vision_config_dict`, which old files have beside it, replaces the `vision_config`.
    """

    projection_dim: Channels = 512
    vision_config: VisionConfig | None = None
    vision_config_dict: VisionConfig | None = None

    @property
    def vision(self) -> VisionConfig:
        """The config of the image half."""
        return self.vision_config_dict or self.vision_config or VisionConfig()

    @property
    def clip_options(self) -> dict[str, Any]:
        """The options of a CLIPConfig."""
        return {
            "projection_dim": self.projection_dim,
            "vision_config": self.vision.model_dump(),
        }


class PreprocessorConfig(NetworkConfig):
    """`preprocessor_config.json` of a safety checker; by default CLIP's own numbers."""

    image_mean: _PerColor = Field([0.48145466, 0.4578275, 0.40821073])
    image_std: _PerColor = Field([0.26862954, 0.26130258, 0.27577711])
