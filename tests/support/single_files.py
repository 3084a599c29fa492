"""A diffusers folder written as one file, in the layout in which SDXL was published.

This is the inverse of `from_single_file` of diffusers, so that tests can compare the two.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def to_single_file(
    folder: Path,
    file: Path,
    *,
    without: tuple[str, ...] = (),
    extra: Mapping[str, torch.Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a folder's networks to one file, except those it should be `without`."""
    second = "conditioner.embedders.0.model."
    tensors: Tensors = dict(extra or {})
    for name, prefix, convert in (
        ("unet", "model.diffusion_model.", unet),
        ("vae", "first_stage_model.", vae),
        ("text_encoder", "conditioner.embedders.0.transformer.", clip),
        ("text_encoder_2", "", open_clip),
    ):
        if name in without or not (folder / name).is_dir():
            continue
        if name == "text_encoder":
            second = "conditioner.embedders.1.model."
        config = json.loads((folder / name / "config.json").read_text())
        weights: Tensors = {}
        for part in sorted((folder / name).glob("*.safetensors")):
            weights |= load_file(part)
        for key, tensor in convert(weights, config):
            tensors[(prefix or second) + key] = tensor.contiguous()
    save_file(tensors, file, metadata)
    return file


def unet(weights: Tensors, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    layers = int(str(config["layers_per_block"]))
    for key, tensor in weights.items():
        layer = next((name for name in _UNET if key.startswith(f"{name}.")), None)
        if layer:
            yield key.replace(layer, _UNET[layer]), tensor
            continue
        side, _, rest = key.partition(".")
        if side == "mid_block":
            kind, index, rest = rest.split(".", 2)
            slot = {"resnets": 2 * int(index), "attentions": 1}[kind]
            yield f"middle_block.{slot}.{_inner(kind, rest)}", tensor
            continue
        block, kind, index, rest = rest.split(".", 3)
        down, first = side == "down_blocks", int(block) * (layers + 1)
        if kind == "downsamplers":
            yield f"input_blocks.{1 + first + layers}.0.{rest.replace('conv', 'op')}", tensor
        elif kind == "upsamplers":
            attends = f"up_blocks.{block}.attentions.0.norm.weight" in weights
            yield f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}", tensor
        else:
            down_name = f"input_blocks.{1 + first + int(index)}"
            name = down_name if down else f"output_blocks.{first + int(index)}"
            yield f"{name}.{0 if kind == 'resnets' else 1}.{_inner(kind, rest)}", tensor


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    name, _, end = rest.partition(".")
    return f"{_RESNET[name]}.{end}"


def vae(weights: Tensors, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    blocks = len(config["block_out_channels"])
    for key, tensor in weights.items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", new)
        new = new.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample")
        if "mid_block.attentions.0." in new:
            side, rest = new.split("mid_block.attentions.0.")
            part, end = rest.rsplit(".", 1)
            new = f"{side}mid.attn_1.{_ATTENTION[part]}.{end}"
            if part != "group_norm" and end == "weight":
                tensor = tensor[:, :, None, None]  # a 1 x 1 convolution
        yield new, tensor


def clip(weights: Tensors, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    yield (
        "text_model.embeddings.position_ids",
        torch.arange(77)[None],
    )  # saved by old transformers
    for key, tensor in weights.items():
        yield f"text_model.{key.removeprefix('text_model.')}", tensor


def open_clip(weights: Tensors, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    yield "logit_scale", torch.ones(())
    yield "text_projection", weights["text_projection.weight"].T
    inner = {k.removeprefix("text_model."): t for k, t in weights.items()}
    yield "positional_embedding", inner["embeddings.position_embedding.weight"]
    yield "token_embedding.weight", inner["embeddings.token_embedding.weight"]
    for end in ("weight", "bias"):
        yield f"ln_final.{end}", inner[f"final_layer_norm.{end}"]
        for layer in range(int(str(config["num_hidden_layers"]))):
            old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            three = [inner[f"{old}.self_attn.{x}_proj.{end}"] for x in "qkv"]
            yield f"{new}.attn.in_proj_{end}", torch.cat(three)
            for theirs, ours in _OPEN_CLIP.items():
                yield f"{new}.{ours}.{end}", inner[f"{old}.{theirs}.{end}"]
