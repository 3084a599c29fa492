"""The tensors of CLIP's two halves, from their configs: transformers' names. No torch.

Equal to the state dicts of CLIPTextModel, CLIPTextModelWithProjection and of diffusers'
StableDiffusionSafetyChecker: tests compare many configs. OpenCLIP's names are those in which the
second text encoder was published.
"""

from collections.abc import Iterator

from serve_app.runtime.checkpoints.clip_configs import (
    SafetyCheckerConfig,
    TextEncoderConfig,
    VisionConfig,
)
from serve_app.runtime.checkpoints.tensor_layout import THIRDS, Shape, Source, View

Named = Iterator[tuple[str, Shape]]
_CONCEPTS, _SPECIAL = 17, 3  # that the safety checker compares an image with
_OPEN_CLIP = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    "final_layer_norm.": "ln_final.",
}
_QKV = dict(zip(("q_proj", "k_proj", "v_proj"), THIRDS, strict=True))


def text_model_tensors(config: TextEncoderConfig) -> Named:
    """Yield the tensors of the text half, without the projection."""
    width = config.hidden_size
    yield "embeddings.token_embedding.weight", (config.vocab_size, width)
    yield "embeddings.position_embedding.weight", (config.max_position_embeddings, width)
    yield from _layers(width, config.intermediate_size, config.num_hidden_layers)
    yield from _norm("final_layer_norm", width)


def safety_checker_tensors(config: SafetyCheckerConfig) -> Named:
    """Yield the tensors of a safety checker."""
    width = config.projection_dim
    yield "concept_embeds", (_CONCEPTS, width)
    yield "special_care_embeds", (_SPECIAL, width)
    yield "concept_embeds_weights", (_CONCEPTS,)
    yield "special_care_embeds_weights", (_SPECIAL,)
    yield "visual_projection.weight", (width, config.vision.hidden_size)
    for name, shape in _vision_tensors(config.vision):
        yield f"vision_model.{name}", shape


def open_clip_source(name: str) -> Source:
    """Return where OpenCLIP keeps a tensor of the text half, by its name in transformers."""
    if name == "text_projection.weight":
        return Source("text_projection", View.TRANSPOSED)
    for part, view in _QKV.items():
        if f".self_attn.{part}." in name:
            layer, _, end = name.removeprefix("encoder.layers.").partition(".")
            suffix = end.rpartition(".")[2]
            return Source(f"transformer.resblocks.{layer}.attn.in_proj_{suffix}", view)
    for ours, published in _OPEN_CLIP.items():
        name = name.replace(ours, published)
    return Source(name)


def _vision_tensors(config: VisionConfig) -> Named:
    width, patch = config.hidden_size, config.patch_size
    patches = (config.image_size // patch) ** 2
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield "embeddings.position_embedding.weight", (patches + 1, width)
    yield from _norm("pre_layrnorm", width)  # so spelt in CLIP
    yield from _layers(width, config.intermediate_size, config.num_hidden_layers)
    yield from _norm("post_layernorm", width)


def _layers(width: int, inner: int, count: int) -> Named:
    for layer in range(count):
        name = f"encoder.layers.{layer}"
        for part in (*_QKV, "out_proj"):
            yield f"{name}.self_attn.{part}.weight", (width, width)
            yield f"{name}.self_attn.{part}.bias", (width,)
        yield from _norm(f"{name}.layer_norm1", width)
        yield f"{name}.mlp.fc1.weight", (inner, width)
        yield f"{name}.mlp.fc1.bias", (inner,)
        yield f"{name}.mlp.fc2.weight", (width, inner)
        yield f"{name}.mlp.fc2.bias", (width,)
        yield from _norm(f"{name}.layer_norm2", width)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
