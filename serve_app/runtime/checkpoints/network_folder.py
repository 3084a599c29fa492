"""The folder of one network in diffusers' layout: its config, and its weights in safetensors.

Pickles are refused, because they can run code. No torch.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import Header, read_header

_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_FP16 = re.compile(r"\.fp16[.-]")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder. Raises `CheckpointError`."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"lacks {name}") from None
    except (OSError, ValueError):
        raise CheckpointError(f"has an unreadable {name}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"has an unreadable {name}")
    return content


def check_weights(folder: Path, network: str) -> str | None:
    """Return the variant of a network's weight files, after a check of every header.

    Raises `CheckpointError` for missing or damaged files, and for pickles.
    """
    files = weight_files(folder)
    if not files:
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise CheckpointError(f"holds a pickle in {network}, where only safetensors are loaded")
        raise CheckpointError(f"lacks the weights of {network} (*.safetensors)")
    read_headers(files)
    return "fp16" if is_fp16(files[0].name) else None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that diffusers loads: the full ones where there are any, else fp16."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not is_fp16(file.name)] or files


def read_headers(files: Iterable[Path]) -> list[Header]:
    """Return the headers of weight files. Raises `CheckpointError`, which names the file."""
    return [read_header(file, f"{file.parent.name}/{file.name}") for file in files]


def is_fp16(name: str) -> bool:
    """Return whether a weight file is of the fp16 variant, which is loaded when it is alone."""
    return _FP16.search(name) is not None
