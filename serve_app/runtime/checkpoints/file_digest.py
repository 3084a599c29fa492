"""Digests of model files, which tell one file from another of the same name.

Cheap, since a service computes them at every start: of a large file they cover its size, its first
megabyte, which has the header of a safetensors file, and blocks all over the rest. Training,
merging and converting change all of a file, or whole networks of it. No torch.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import (
    INDEX_FILE,
    NETWORKS,
    SCHEDULER_FILE,
    Checkpoint,
    weight_plans,
)
from serve_app.runtime.checkpoints.tokenizer_folder import TOKENIZER_FILES

_HEAD_BYTES = 1 << 20
_BLOCKS = 256  # 1 MiB of a file: one block in 27 MB of an SDXL checkpoint
_BLOCK_BYTES = 4096
_TOKENIZERS = ("tokenizer", "tokenizer_2")


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of the files that decide an image of a checkpoint, wherever they are.

    Raises `CheckpointError`.
    """
    files = {
        tensor.file for plan in weight_plans(checkpoint).values() for tensor in plan.stored
    } | set(_configs(checkpoint.folder))
    return _short(sorted(map(file_digest, files)))


def file_digest(file: Path) -> str:
    """Return a digest of a file, which may be large. Raises `CheckpointError`."""
    digest = sha256()
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest.update(b"%d\n" % size)
            digest.update(stream.read(_HEAD_BYTES))
            span = size - _HEAD_BYTES - _BLOCK_BYTES
            for number in range(_BLOCKS if size > _HEAD_BYTES else 0):
                stream.seek(_HEAD_BYTES + max(0, span) * number // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror}", subject=str(file)) from None
    return digest.hexdigest()


def _configs(folder: Path) -> Iterator[Path]:
    """Yield the configs and the tokenizers' files in a checkpoint's folder."""
    names = [INDEX_FILE, SCHEDULER_FILE, *(f"{network}/config.json" for network in NETWORKS)]
    names += [f"{tokenizer}/{name}" for tokenizer in _TOKENIZERS for name in TOKENIZER_FILES]
    yield from filter(Path.is_file, (folder / name for name in names))


def _short(digests: list[str]) -> str:
    return sha256("\n".join(digests).encode()).hexdigest()[:16]
