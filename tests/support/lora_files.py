"""LoRAs for a checkpoint folder, in the ways that they are written down in the field."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.single_files import unet

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
_LAYERS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "text_encoder_2": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_PEFT = tuple(f"{network}." for network in NETWORKS)
_COMFYUI = tuple(f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g"))
_PREFIXES = {  # of layers of each network, by style
    "kohya": tuple(_KOHYA.values()),
    "sgm": tuple(_KOHYA.values()),
    "lycoris": ("lycoris_", *tuple(_KOHYA.values())[1:]),
    "peft": _PEFT,
    "peft, one adapter": _PEFT,
    "peft, wrapped": tuple(f"{name}base_model.model." for name in _PEFT),
    "peft, alone": ("base_model.model.",) * 3,
    "bare": ("",) * 3,
    "comfyui": ("diffusion_model.", *_COMFYUI),
    "comfyui, published": ("diffusion_model.", *_COMFYUI),
    "onetrainer": ("unet.", "clip_l.", "clip_g."),
}
STYLES = tuple(_PREFIXES)
_KOHYA_PARTS = {"kohya", "sgm", "lycoris", "comfyui, published", "onetrainer"}
_PUBLISHED = {"sgm", "comfyui, published"}
_FIRST = re.compile(r"[._](lora_down|lora_A|lora\.down|lora_linear_layer\.down|lora_A\.default)$")


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
    dora: float | None = None,
) -> Path:
    """A LoRA of every layer that trainers change, or of those whose names end in `layers`, which
    have the `ranks`, and alphas where there are any, in turn. Its products are about `by` times as
    large as weights are at the start of a training. With `dora`, for kohya's style and peft's,
    the rows of the changed weights are up to so much longer than those of the plain ones."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    turns, alpha_turns = cycle(ranks), cycle(alphas)
    for network in networks:
        for layer, shape in weights_of(folder, network, layers or _LAYERS[network]):
            rank = next(turns)
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *[1 for _ in shape[2:]], generator=generator)
            down, up = down * by / rank**0.5, up / down[0].numel() ** 0.5
            first, second = _named(style, folder, network, layer)
            tensors[f"{first}.weight"], tensors[f"{second}.weight"] = down, up
            if alphas:
                tensors[_alpha(first)] = torch.tensor(float(next(alpha_turns)))
            if dora is not None:
                lengths = _plain(folder, network)[f"{layer}.weight"].flatten(1).norm(dim=1)
                magnitude = lengths * (1 + dora * torch.rand(shape[0], generator=generator))
                if style == "kohya":
                    tensors[f"{kohya_stem(network, layer)}.dora_scale"] = magnitude[:, None]
                else:
                    tensors[f"{network}.{layer}.lora_magnitude_vector"] = magnitude
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
        for layer, shape in weights_of(folder, network, _LAYERS[network]):
            first, second = _named(style, folder, network, layer)
            if f"{first}.weight" in lora:
                down, up = (lora[f"{name}.weight"].flatten(1) for name in (first, second))
                scale = weight * float(lora.get(_alpha(first), len(down))) / len(down)
                tensors[f"{layer}.weight"] += scale * (up @ down).view(shape)
        save_file(tensors, weights, {"format": "pt"})
    return copy


def _alpha(first: str) -> str:
    """The name of the alpha that belongs to a layer's first part."""
    return _FIRST.sub("", first) + ".alpha"


@cache
def _plain(folder: Path, network: str) -> dict[str, torch.Tensor]:
    """The tensors of a network."""
    (file,) = (folder / network).glob("*.safetensors")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def weights_of(
    folder: Path, network: str, ends: Sequence[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers of a network whose names end so, and the shapes of their weights."""
    (file,) = (folder / network).glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  it is no dict
            layer = name.removesuffix(".weight")
            if layer != name and layer.endswith(tuple(ends)):
                yield layer, tuple(weights.get_slice(name).get_shape())


def kohya_stem(network: str, layer: str) -> str:
    """How kohya's trainer calls a layer."""
    return _KOHYA[network] + _in_text_model(network, layer).replace(".", "_")


@cache
def published_names(folder: Path) -> dict[str, str]:
    """The UNet's layers as they were called when SDXL was published, by diffusers' names."""
    config = json.loads((folder / "unet/config.json").read_text())
    weights = _plain(folder, "unet")
    published = (name for name, _ in unet(weights, config))
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, theirs in zip(weights, published, strict=True)
    }


def _in_text_model(network: str, layer: str) -> str:
    """As CLIP called it when LoRAs came up, and files still do."""
    if network == "unet" or layer.startswith(("text_model.", "text_projection")):
        return layer
    return f"text_model.{layer}"


def _named(style: str, folder: Path, network: str, layer: str) -> tuple[str, str]:
    """The names of the two parts of a layer, without the end that all tensors have."""
    layer = _in_text_model(network, layer)
    if style == "processors":  # as diffusers wrote them at first
        block, _, name = layer.removesuffix(".0").rpartition(".")
        if network == "unet":
            stem = f"unet.{block}.processor.{name}_lora"
        else:
            stem = f"{network}.{block}.to_{name.removesuffix('_proj')}_lora"
        return f"{stem}.down", f"{stem}.up"
    if style == "diffusers":  # as its training scripts wrote them until 2023
        within = "lora" if network == "unet" else "lora_linear_layer"
        return f"{network}.{layer}.{within}.down", f"{network}.{layer}.{within}.up"
    down, up = ("lora_down", "lora_up") if style in _KOHYA_PARTS else ("lora_A", "lora_B")
    if style in _PUBLISHED and network == "unet":
        layer = published_names(folder)[layer]
    prefix = _PREFIXES[style][NETWORKS.index(network)]
    stem = prefix + (layer.replace(".", "_") if prefix.endswith("_") else layer)
    end = ".default" if style == "peft, one adapter" else ""
    return f"{stem}.{down}{end}", f"{stem}.{up}{end}"
