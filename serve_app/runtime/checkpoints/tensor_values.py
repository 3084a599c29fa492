"""The values of a small tensor in a safetensors file, without torch."""

import json
from pathlib import Path
from struct import unpack
from typing import Any

from serve_app.core.errors import CheckpointError

_MAX_BYTES = 1_000_000
_CODES = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2)}  # of `struct`, and bytes of a value


def read_values(file: Path, name: str) -> tuple[float, ...]:
    """Return the values of a float tensor, in the order of the file.

    Raises `CheckpointError` for another type, and for a tensor too large to be a setting.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entry: dict[str, Any] = json.loads(stream.read(length))[name]
        start, end = entry["data_offsets"]
        if end - start > _MAX_BYTES or entry["dtype"] not in {*_CODES, "BF16"}:
            raise CheckpointError(
                f"holds {name} as {entry['dtype']} {entry['shape']}: not settings"
            )
        stream.seek(8 + length + start)
        data = stream.read(end - start)
    if entry["dtype"] == "BF16":  # the upper half of single precision
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    code, size = _CODES.get(entry["dtype"], _CODES["F32"])
    return unpack(f"<{len(data) // size}{code}", data)
