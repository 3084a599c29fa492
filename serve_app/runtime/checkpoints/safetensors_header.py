"""The header of a safetensors file: names, types and shapes of its tensors, and its metadata.

A file is eight bytes with the length of the header, the header as JSON, and the data of the
tensors. See the format at https://github.com/huggingface/safetensors. No torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_HEAD = 64  # bytes that show a file's type
_IMPOSTORS = {  # what begins like this is another kind of file
    b"version https://git-lfs": "it is a Git LFS pointer, because the clone did not download the "
    "weights",
    b"<!doctype": "it is a web page, as sites send it to visitors without access to the file",
    b"<html": "it is a web page, as sites send it to visitors without access to the file",
    b"<?xml": "it is a web page, as sites send it to visitors without access to the file",
    b"pk\x03\x04": "it is a pickle, which can run code",
    b"\x80\x02": "it is a pickle, which can run code",
    b"gguf": "it is a GGUF file",
}
BITS = {  # of one value, by the format's names
    **{"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8},
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file, whose data is not read yet."""

    file: Path
    label: str  # of the file, in messages
    name: str
    dtype: str  # the format's name, such as F16
    shape: tuple[int, ...]
    start: int  # of the data, in bytes from the start of the file
    end: int

    @property
    def num_bytes(self) -> int:
        """The size of its data."""
        return self.end - self.start

    def read_bytes(self) -> bytes:
        """Return the data of a small tensor. Raises `CheckpointError`."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start)
                return stream.read(self.num_bytes)
        except OSError as error:
            raise CheckpointError(f"holds an unreadable {self.label}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors by name, and its `__metadata__`."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def read_header(file: Path, label: str) -> Header:
    """Return the header of a file whose data is complete.

    Raises `CheckpointError`, whose problem calls the file `label`.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            size = file.stat().st_size
            if not size:
                raise CheckpointError(f"holds {label}, which is empty")
            if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
                raise _not_safetensors(label, start + stream.read(_HEAD))
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"holds an unreadable {label}: {error.strerror}") from None
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        begin = 8 + length
        tensors = {
            name: _tensor(file, label, name, entry, begin) for name, entry in entries.items()
        }
        header = Header(tensors, {str(key): str(value) for key, value in metadata.items()})
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise _not_safetensors(label, start + text[:_HEAD]) from None
    end = max((tensor.end for tensor in tensors.values()), default=begin)
    if size < end:
        raise CheckpointError(f"holds a truncated {label}: {size} of {end} bytes")
    if size > end:
        raise CheckpointError(f"holds {label}, which has {size - end} bytes after its last tensor")
    return header


def _tensor(
    file: Path, label: str, name: str, entry: Mapping[str, Any], begin: int
) -> StoredTensor:
    """Return one entry of a header. Raises `ValueError` or the like when it is malformed."""
    dtype, shape = entry["dtype"], entry["shape"]
    start, end = entry["data_offsets"]
    numbers = [start, end, *shape]
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(name)
    bits = BITS.get(dtype)
    if start > end or (bits is not None and prod(shape) * bits != (end - start) * 8):
        raise ValueError(name)
    return StoredTensor(file, label, name, dtype, tuple(shape), begin + start, begin + end)


def _not_safetensors(label: str, head: bytes) -> CheckpointError:
    """Return the error for a file that is none, with what it is if that is known."""
    start = head.lstrip().lower()
    problem = f"holds {label}, which is no safetensors file inside"
    for magic, kind in _IMPOSTORS.items():
        if start.startswith(magic):
            return CheckpointError(f"{problem}: {kind}")
    return CheckpointError(problem)
