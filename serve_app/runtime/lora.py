"""A LoRA in a file, read without loading it: is it one for SDXL, and what does it change?

Knows no torch: names and shapes of tensors say it all. Two families of names are known, kohya's
and diffusers' with peft's, as diffusers loads them.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

from serve_app.core.errors import CheckpointError
from serve_app.runtime.header import read_header
from serve_app.runtime.single_file import SUFFIX

_NETWORKS = (  # how a tensor's name begins, and the network whose layer it changes
    ("lora_unet_", "unet"),
    ("unet.", "unet"),
    ("lora_te1_", "text_encoder"),
    ("text_encoder.", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("text_encoder_2.", "text_encoder_2"),
)
_LAYER = re.compile(
    r"\.(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.(down|up))\.weight$"
)
_ALPHA = re.compile(r"\.alpha$")
_ATTENDED = re.compile(r"attn2[._]to_[kv]\.(lora_down|lora_A|lora\.down)\.weight$")
_OTHERS = (  # part of a tensor's name, and what has such a part
    ("hada_", "is a LoHa, which is not known here: only LoRA is"),
    ("lokr_", "is a LoKr, which is not known here: only LoRA is"),
    ("dora_scale", "is a DoRA, which is not known here: only LoRA is"),
    ("lora_magnitude_vector", "is a DoRA, which is not known here: only LoRA is"),
    ("lora_mid", "is a LoCon with three parts a layer, which is not known here: only LoRA is"),
    ("oft_", "is an OFT, which is not known here: only LoRA is"),
    ("lora_te_", "is a LoRA for Stable Diffusion 1 or 2; only SDXL's fit here"),
    ("transformer.", "is a LoRA for another kind of model; only SDXL's fit here"),
    ("diffusion_model.", "is a LoRA for another kind of model; only SDXL's fit here"),
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA for SDXL, as its header has it."""

    path: Path
    networks: frozenset[str]  # that it changes, by their names in a diffusers folder
    numbers: int  # how many its weights have
    text_width: int | None  # of the text that its layers attend to; None: it changes none of those
    license: str  # what its notes say of terms, "" when they don't


def inspect_lora(path: Path, where: str) -> LoraFile:
    """The facts of a whole LoRA. Raises `CheckpointError` with one line that names the path, and
    `where` it was set."""
    try:
        return _read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{where}={path} {error}") from None


def _read(path: Path) -> LoraFile:
    if not path.exists():
        raise CheckpointError("does not exist")
    if path.suffix != SUFFIX or path.is_dir():
        raise CheckpointError("is no .safetensors file: a pickle can run code")
    header = read_header(path, path.name)
    for part, sentence in _OTHERS:
        if any(part in name for name in header.shapes):
            raise CheckpointError(sentence)
    networks, numbers, widths = set[str](), 0, set[int]()
    for name, shape in header.shapes.items():
        network = next((one for prefix, one in _NETWORKS if name.startswith(prefix)), None)
        layer = _LAYER.search(name)
        if network is None or not (layer or _ALPHA.search(name)):
            raise CheckpointError(f"is no LoRA for SDXL: {name} is no part of one")
        networks.add(network)
        numbers += prod(shape) if layer else 0
        if _ATTENDED.search(name):
            widths.add(shape[-1])
    if not numbers:
        raise CheckpointError("is no LoRA for SDXL: it changes no layer")
    if len(widths) > 1:
        raise CheckpointError("is no LoRA for SDXL: its layers attend to texts of several widths")
    notes = header.notes
    return LoraFile(
        path=path,
        networks=frozenset(networks),
        numbers=numbers,
        text_width=widths.pop() if widths else None,
        license=notes.get("modelspec.license", ""),
    )
