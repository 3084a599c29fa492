"""A LoRA in a file, read without loading it: is it one for SDXL, and what does it change?

Knows no torch: names and shapes of tensors say it all. Two families of names are known: kohya's,
and those of diffusers and peft.
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
_LAYERS = (  # how the name of a layer ends, by family
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
_UNET = re.compile(  # parts of SDXL's, by all its names; a Flux has none of them
    r"(down|up|input|output)_blocks|mid_block|middle_block|time_emb|label_emb|add_embedding|"
    r"conv_(in|out)|lora_unet_out_2"
)
_FOREIGN_KINDS = (  # part of a tensor's name, and what has such a part
    ("hada_", "is a LoHa, which is not known here: only LoRA is"),
    ("lokr_", "is a LoKr, which is not known here: only LoRA is"),
    ("dora_scale", "is a DoRA, which is not known here: only LoRA is"),
    ("lora_magnitude_vector", "is a DoRA, which is not known here: only LoRA is"),
    ("lora_mid", "is a LoCon with three parts a layer, which is not known here: only LoRA is"),
    ("oft_", "is an OFT, which is not known here: only LoRA is"),
    ("bundle_emb", "brings embeddings of new words, which are not known here: only LoRA is"),
    ("lora_te_", "is a LoRA for Stable Diffusion 1 or 2; only SDXL's fit here"),
    ("double_blocks", "is a LoRA for another kind of model; only SDXL's fit here"),
    ("joint_blocks", "is a LoRA for another kind of model; only SDXL's fit here"),
    ("transformer.", "is a LoRA for another kind of model; only SDXL's fit here"),
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA for SDXL, as its header has it."""

    path: Path
    networks: frozenset[str]  # that it changes, by their names in a diffusers folder
    num_parameters: int  # how many its weights have
    text_width: int | None  # of the text that its layers attend to; None: it changes none of those
    license: str  # what its notes say of terms, "" when they don't
    fingerprint: tuple[int, int] = field(
        default=(0, 0), compare=False
    )  # size and time, see `is_as_read`

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is the one whose header was read."""
        return fingerprint_of(self.path) == self.fingerprint


def inspect_lora(path: Path) -> LoraFile:
    """Return what a complete LoRA file says of itself.

    Raises `CheckpointError` with the path as its subject.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        raise error.about(str(path)) from None


def fingerprint_of(path: Path) -> tuple[int, int]:
    """Bytes of a file, and when it was last written, in nanoseconds. Raises `OSError`."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _read(path: Path) -> LoraFile:
    if not path.exists():
        raise CheckpointError("does not exist")
    if path.suffix != SUFFIX or path.is_dir():
        raise CheckpointError("is no .safetensors file: a pickle can run code")
    stamp = fingerprint_of(path)
    header = read_header(path, path.name)
    for part, sentence in _FOREIGN_KINDS:
        if any(part in name for name in header.shapes):
            raise CheckpointError(sentence)
    networks = {_network(name) for name in header.shapes}
    layers = {name: shape for name, shape in header.shapes.items() if not name.endswith(ALPHA)}
    widths = {shape[1] for name, shape in layers.items() if _CROSS_ATTENTION.search(name)}
    if not layers:
        raise CheckpointError("is no LoRA for SDXL: it changes no layer")
    if "unet" in networks and not any(_UNET.search(name) for name in layers):
        raise CheckpointError("is a LoRA for another kind of model; only SDXL's fit here")
    if len(widths) > 1:
        raise CheckpointError("is no LoRA for SDXL: its layers attend to texts of several widths")
    return LoraFile(
        path=path,
        networks=frozenset(networks),
        num_parameters=sum(map(prod, layers.values())),
        text_width=widths.pop() if widths else None,
        license=header.metadata.get("modelspec.license", ""),
        fingerprint=stamp,
    )


def _network(name: str) -> str:
    """The network whose layer a tensor changes."""
    for family, layer in _LAYERS:
        for prefix, network in family.items():
            if name.startswith(prefix) and (layer.search(name) or name.endswith(ALPHA)):
                return network
    raise CheckpointError(f"is no LoRA for SDXL, or has names that are not read here: {name}")
