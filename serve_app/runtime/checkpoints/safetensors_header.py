"""The header of a safetensors file: which tensors there are, of what shape, and the notes.

Knows no torch and reads no tensor: eight bytes of length, a JSON header, and as many bytes of data
as the header promises.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError

_LONGEST = 100_000_000  # bytes, as the safetensors library has it


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: the shapes of its tensors by name, and its notes."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path, called: str) -> Header:
    """The header of a whole file. Raises `CheckpointError`, which calls the file `called`."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 0 < length <= min(size, _LONGEST):
                raise ValueError
            header: dict[str, Any] = json.loads(stream.read(length))
        notes = header.pop("__metadata__", None) or {}
        ends = [entry["data_offsets"][1] for entry in header.values()]
        whole = size == 8 + length + max(ends, default=0)
        told = Header(
            {name: tuple(map(int, entry.get("shape", ()))) for name, entry in header.items()},
            {str(name): str(note) for name, note in notes.items()},
        )
    except (OSError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        raise CheckpointError(f"holds {called}, which is no safetensors file inside") from None
    if not whole:
        raise CheckpointError(f"holds a truncated {called}")
    return told
