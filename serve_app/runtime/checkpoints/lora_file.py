"""A LoRA file, inspected without loading it: is it for SDXL, and which layers does it change?

Names and shapes of tensors are enough, so there is no torch here. The names of two families are
known: those of kohya's trainer, and those of diffusers and peft.
"""

import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import read_header
from serve_app.runtime.checkpoints.single_file import SUFFIX

_KOHYA = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_DOTTED = {name + ".": name for name in _KOHYA.values()}
_LAYERS = (  # how the name of a layer's tensor ends, by family
    (_KOHYA, re.compile(r"\.(lora_down|lora_up)\.weight$")),
    (
        _DOTTED,
        re.compile(r"\.(lora_[AB]|lora\.(down|up)|lora_linear_layer\.(down|up))\.weight$"),
    ),
    (_DOTTED, re.compile(r"\.to_(q|k|v|out)_lora\.(down|up)\.weight$")),
)
ALPHA = ".alpha"
_CROSS_ATTENTION = re.compile(
    r"attn2[._](processor\.)?to_[kv](_lora)?\.(lora_down|lora_A|(lora\.)?down)\."
)
_UNET = re.compile(  # parts of SDXL's UNet, under all its names; Flux has none of them
    r"(down|up|input|output)_blocks|mid_block|middle_block|time_emb|label_emb|add_embedding|"
    r"conv_(in|out)|lora_unet_out_2"
)
_ONLY_LORA = "which is not supported: only LoRA is"
_ONLY_SDXL = "is a LoRA for another kind of model; only LoRAs for SDXL fit"
_FOREIGN_KINDS = (  # a part of a tensor's name, and the problem of a file that has such a tensor
    ("hada_", f"is a LoHa, {_ONLY_LORA}"),
    ("lokr_", f"is a LoKr, {_ONLY_LORA}"),
    ("dora_scale", f"is a DoRA, {_ONLY_LORA}"),
    ("lora_magnitude_vector", f"is a DoRA, {_ONLY_LORA}"),
    ("lora_mid", f"is a LoCon with three tensors per layer, {_ONLY_LORA}"),
    ("oft_", f"is an OFT, {_ONLY_LORA}"),
    ("bundle_emb", "contains embeddings of new words, which are not supported: only LoRA is"),
    ("lora_te_", "is a LoRA for Stable Diffusion 1 or 2; only LoRAs for SDXL fit"),
    ("double_blocks", _ONLY_SDXL),
    ("joint_blocks", _ONLY_SDXL),
    ("transformer.", _ONLY_SDXL),
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What the header of a LoRA for SDXL says."""

    path: Path
    networks: frozenset[str]  # those it changes, by their names in a diffusers folder
    num_parameters: int
    cross_attention_dim: int | None  # of the texts; None when it changes no cross-attention layer
    license: str  # "modelspec.license" of its metadata, or ""
    fingerprint: tuple[int, int] = field(default=(0, 0), compare=False)  # see `fingerprint_of`

    @property
    def is_unchanged(self) -> bool:
        """Return whether the file on disk is still the one whose header was read."""
        return fingerprint_of(self.path) == self.fingerprint


def inspect_lora(path: Path) -> LoraFile:
    """Return what a complete LoRA file says of itself.

    Raises `CheckpointError` with the path as its subject.
    """
    try:
        return _inspect(path)
    except CheckpointError as error:
        raise error.about(str(path)) from None


def fingerprint_of(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its modification time in ns. Raises `OSError`."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _inspect(path: Path) -> LoraFile:
    if not path.exists():
        raise CheckpointError("does not exist")
    if path.suffix != SUFFIX or path.is_dir():
        raise CheckpointError("is no .safetensors file: a pickle can run code")
    fingerprint = fingerprint_of(path)
    header = read_header(path, path.name)
    for part, problem in _FOREIGN_KINDS:
        if any(part in name for name in header.shapes):
            raise CheckpointError(problem)
    networks = {_network_of(name) for name in header.shapes}
    layers = {name: shape for name, shape in header.shapes.items() if not name.endswith(ALPHA)}
    dims = {shape[1] for name, shape in layers.items() if _CROSS_ATTENTION.search(name)}
    if not layers:
        raise CheckpointError("is no LoRA for SDXL: it changes no layer")
    if "unet" in networks and not any(_UNET.search(name) for name in layers):
        raise CheckpointError(_ONLY_SDXL)
    if len(dims) > 1:
        raise CheckpointError("is no LoRA for SDXL: its layers attend to texts of several widths")
    return LoraFile(
        path=path,
        networks=frozenset(networks),
        num_parameters=sum(map(prod, layers.values())),
        cross_attention_dim=dims.pop() if dims else None,
        license=header.metadata.get("modelspec.license", ""),
        fingerprint=fingerprint,
    )


def _network_of(name: str) -> str:
    """Return the network whose layer a tensor changes; raise `CheckpointError` if unknown."""
    for family, layer in _LAYERS:
        for prefix, network in family.items():
            if name.startswith(prefix) and (layer.search(name) or name.endswith(ALPHA)):
                return network
    raise CheckpointError(f"is no LoRA for SDXL, or has tensor names of an unknown kind: {name}")
