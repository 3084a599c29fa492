"""LoRAs for a checkpoint folder, in the ways that they are written down in the field."""

import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
_LAYERS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "text_encoder_2": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_ENDS = {
    "kohya": ("lora_down", "lora_up"),
    "sgm": ("lora_down", "lora_up"),
    "peft": ("lora_A", "lora_B"),
}
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d)\.)?attentions\.(\d)\.(.*)")
_FIRST = re.compile(r"[._](lora_down|lora_A|lora\.down|lora_linear_layer\.down)$")
_LEVEL = 2  # blocks of each level of the demo's UNet, a layer and what goes to the next


def lora_file(
    folder: Path,
    file: Path,
    *,
    style: str = "kohya",
    networks: Sequence[str] = NETWORKS,
    ranks: Sequence[int] = (4,),
    alphas: Sequence[float] = (),
    seed: int = 0,
    by: float = 0.3,
    layers: Sequence[str] | None = None,
    notes: dict[str, str] | None = None,
) -> Path:
    """A LoRA of every layer that trainers change, or of those whose names end in `layers`, which
    have the `ranks`, and alphas where there are any, in turn. Its products are about `by` times as
    large as weights are at the start of a training."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    turns, alpha_turns = cycle(ranks), cycle(alphas)
    for network in networks:
        for layer, shape in _weights(folder, network, layers or _LAYERS[network]):
            rank = next(turns)
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *[1 for _ in shape[2:]], generator=generator)
            down, up = down * by / rank**0.5, up / down[0].numel() ** 0.5
            first, second = _named(style, network, layer)
            tensors[f"{first}.weight"], tensors[f"{second}.weight"] = down, up
            if alphas:
                tensors[_alpha(first)] = torch.tensor(float(next(alpha_turns)))
    save_file(tensors, file, notes)
    return file


def merged(folder: Path, copy: Path, file: Path, style: str, *, weight: float) -> Path:
    """A copy of the folder whose weights are what the LoRA makes of them, by the formula of its
    paper: W + weight * alpha / rank * B A."""
    shutil.copytree(folder, copy)
    lora = load_file(file)
    for network in NETWORKS:
        (weights,) = (copy / network).glob("*.safetensors")
        tensors = load_file(weights)
        for layer, shape in _weights(folder, network, _LAYERS[network]):
            first, second = _named(style, network, layer)
            if f"{first}.weight" in lora:
                down, up = (lora[f"{name}.weight"].flatten(1) for name in (first, second))
                scale = weight * float(lora.get(_alpha(first), len(down))) / len(down)
                tensors[f"{layer}.weight"] += scale * (up @ down).view(shape)
        save_file(tensors, weights, {"format": "pt"})
    return copy


def _alpha(first: str) -> str:
    """The name of the alpha that belongs to a layer's first part."""
    return _FIRST.sub("", first) + ".alpha"


def _weights(
    folder: Path, network: str, ends: Sequence[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    (file,) = (folder / network).glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  it is no dict
            layer = name.removesuffix(".weight")
            if layer != name and layer.endswith(tuple(ends)):
                yield layer, tuple(weights.get_slice(name).get_shape())


def _named(style: str, network: str, layer: str) -> tuple[str, str]:
    """The names of the two parts of a layer, without the end that all tensors have."""
    if network != "unet" and not layer.startswith("text_model."):
        layer = f"text_model.{layer}"  # as CLIP called it when LoRAs came up, and files still do
    if style == "processors":  # as they wrote them at first
        block, _, name = layer.removesuffix(".0").rpartition(".")
        stem = f"unet.{block}.processor.{name}_lora"
        return f"{stem}.down", f"{stem}.up"
    if style == "diffusers":  # as its training scripts wrote them until 2023
        within = "lora" if network == "unet" else "lora_linear_layer"
        return f"{network}.{layer}.{within}.down", f"{network}.{layer}.{within}.up"
    down, up = _ENDS[style]
    stem = f"{network}.{layer}"
    if style in ("kohya", "sgm"):
        if style == "sgm" and network == "unet":
            layer = _published(layer)
        stem = _KOHYA[network] + layer.replace(".", "_")
    return f"{stem}.{down}", f"{stem}.{up}"


def _published(layer: str) -> str:
    """The name that an attention layer has in the layout SDXL was published in."""
    found = _BLOCK.fullmatch(layer)
    assert found, f"{layer} is no attention layer"
    where, block, number, rest = found.groups()
    if where == "mid_block":
        return f"middle_block.1.{rest}"
    at = int(block) * _LEVEL + int(number)
    return (
        f"input_blocks.{at + 1}.1.{rest}"
        if where == "down_blocks"
        else f"output_blocks.{at}.1.{rest}"
    )
