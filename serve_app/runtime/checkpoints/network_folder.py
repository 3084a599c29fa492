"""The folder of one network in diffusers' layout: its config, and its weights in safetensors.

Pickles are refused, because they can run code. No torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import StoredTensor, read_header

_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_FP16 = re.compile(r"\.fp16[.-]")
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # else "model"
_MAX_LISTED = 3  # files or tensors that a message names


@dataclass(frozen=True, slots=True)
class NetworkWeights:
    """The files that the libraries read for a network, and the tensors in them."""

    label: str  # of the file, or of all shards
    tensors: Mapping[str, StoredTensor]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder. Raises `CheckpointError`."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"lacks {name}") from None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"has an unreadable {name}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"has an unreadable {name}")
    return content


def read_weights(folder: Path, network: str, *, label: str | None = None) -> NetworkWeights:
    """Return the weights of a network, from the headers of the files that the libraries read.

    Those are one file or the shards that an index names, and those of the fp16 variant only where
    there are no others. `label` is what messages call the folder, by default its name. Raises
    `CheckpointError` for missing or damaged files, and for pickles.
    """
    stem, label = _STEMS.get(network, "model"), folder.name if label is None else label
    prefix = f"{label}/" if label else ""
    for infix in ("", ".fp16"):
        name = f"{stem}{infix}.safetensors"
        if (folder / name).is_file():
            tensors = read_header(folder / name, prefix + name).tensors
            return NetworkWeights(prefix + name, tensors)
        index = _index_of(folder, stem, infix)
        if index is not None:
            return _read_shards(folder, index, prefix)
    raise _missing(folder, stem, network)


def is_fp16(name: str) -> bool:
    """Return whether a weight file is of the fp16 variant, which is loaded when it is alone."""
    return _FP16.search(name) is not None


def listed(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_MAX_LISTED])
    more = len(names) - _MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _index_of(folder: Path, stem: str, infix: str) -> str | None:
    """Return the name of the index of shards: diffusers and transformers spell a variant's so."""
    names = [f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"]
    return next((name for name in names if (folder / name).is_file()), None)


def _read_shards(folder: Path, index: str, prefix: str) -> NetworkWeights:
    """Return the weights of all shards; of a name that several have, those that the index means."""
    try:
        content = read_json(folder, index)
    except CheckpointError:
        raise CheckpointError(f"has an unreadable {prefix}{index}") from None
    files = content.get("weight_map")
    if not isinstance(files, dict) or not files or not all(map(_is_file_name, files.values())):
        raise CheckpointError(f"has a {prefix}{index} whose weight_map names no files")
    names = sorted(set(files.values()))
    absent = [prefix + name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"lacks {len(absent)} of {len(names)} files that {prefix}{index} names: "
            f"{listed(absent)}"
        )
    tensors: dict[str, StoredTensor] = {}
    for file in names:
        header = read_header(folder / file, prefix + file)
        tensors |= {n: t for n, t in header.tensors.items() if files.get(n, file) == file}
    unplaced = sorted(files.keys() - tensors.keys())
    if unplaced:
        raise CheckpointError(
            f"holds no {listed(unplaced)} in the files where {prefix}{index} places them"
        )
    return NetworkWeights(f"{prefix}{index}", tensors)


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _missing(folder: Path, stem: str, network: str) -> CheckpointError:
    """Return the error for a folder without weights that the libraries read."""
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return CheckpointError(
            f"lacks the weights of {network}, {stem}.safetensors: it holds only {listed(others)}"
        )
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        return CheckpointError(f"holds a pickle in {network}, where only safetensors are loaded")
    return CheckpointError(f"lacks the weights of {network}, {stem}.safetensors")
