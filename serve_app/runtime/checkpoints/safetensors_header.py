"""The header of a safetensors file: names and shapes of its tensors, and its metadata. No torch.

A file is eight bytes with the length of the header, the header as JSON, and the data of the
tensors, which is not read here. See the format at https://github.com/huggingface/safetensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class Header:
    """Shapes of a file's tensors by name, and its `__metadata__`."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path, label: str) -> Header:
    """Return the header of a file whose data is complete.

    Raises `CheckpointError`, whose problem calls the file `label`.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 0 < length <= min(size, _MAX_HEADER_BYTES):
                raise ValueError
            entries: dict[str, Any] = json.loads(stream.read(length))
        metadata = entries.pop("__metadata__", None) or {}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        is_complete = size == 8 + length + max(ends, default=0)
        header = Header(
            {name: tuple(map(int, entry.get("shape", ()))) for name, entry in entries.items()},
            {str(key): str(value) for key, value in metadata.items()},
        )
    except (OSError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        raise CheckpointError(f"holds {label}, which is no safetensors file inside") from None
    if not is_complete:
        raise CheckpointError(f"holds a truncated {label}")
    return header
