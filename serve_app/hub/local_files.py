"""The files of a repository on disk: complete, partial or missing; and whether the rest fits.

No network. A file that is still downloading is in the parts folder, named by the hash it will
have, so a part is never resumed with different content, and a file at its final path is complete.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from serve_app.core.errors import DownloadError
from serve_app.hub.selection import RepoFile

_PARTS = ".parts"
_CHUNK = 1 << 20  # bytes read at once
_RESERVE = 500_000_000  # bytes that stay free: a full disk breaks more than a download


def part_path(folder: Path, file: RepoFile) -> Path:
    """Return the path of a file while it downloads."""
    return folder / _PARTS / file.hash


def size_on_disk(path: Path) -> int:
    """Return the size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def matches(
    file: RepoFile, stream: BinaryIO, on_bytes: Callable[[int], object] = lambda _: None
) -> bool:
    """Return whether a stream has the hash that the hub announces.

    `on_bytes` is called with each count of bytes read.
    """
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        on_bytes(len(chunk))
    return digest.hexdigest() == file.hash


def with_right_size(files: Iterable[RepoFile], folder: Path) -> tuple[RepoFile, ...]:
    """Return the files that exist with their right size, and so are worth verifying."""
    paths = ((file, folder / file.path) for file in files)
    return tuple(f for f, path in paths if path.is_file() and path.stat().st_size == f.size)


def missing(
    files: Iterable[RepoFile], folder: Path, on_bytes: Callable[[int], object] = lambda _: None
) -> tuple[RepoFile, ...]:
    """Return the files that are absent or wrong, after reading and verifying all others."""
    files = tuple(files)
    verified = set()
    for file in with_right_size(files, folder):
        with (folder / file.path).open("rb") as stream:
            if matches(file, stream, on_bytes):
                verified.add(file)
    return tuple(file for file in files if file not in verified)


def resumable_bytes(files: Iterable[RepoFile], folder: Path) -> int:
    """Return how many bytes of these files are in parts, and need not be downloaded again."""
    sizes = ((size_on_disk(part_path(folder, file)), file.size or 0) for file in files)
    return sum(present for present, size in sizes if present <= size)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def check_free_space(needed: int, free: int, folder: Path, command: str) -> None:
    """Check that `needed` bytes fit on the disk and leave a reserve.

    Raises `DownloadError`, which names the command to run again.
    """
    if needed and needed + _RESERVE > free:
        raise DownloadError(
            f"has {decimal(free)} free, and {decimal(needed + _RESERVE)} are needed: "
            f"{decimal(needed)} to download and {decimal(_RESERVE)} that stay free",
            subject=str(folder),
            remedy=f"Free some space or choose another disk with --folder, then run: {command}",
        )


@contextmanager
def download_lock(folder: Path, command: str) -> Iterator[None]:
    """Keep other downloads out of a folder.

    Raises `DownloadError` if one is running, which names the command to run again.
    """
    import fcntl  # absent on Windows, where `doctor` must be able to import this module

    parts = folder / _PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"another download into {folder} is running",
                remedy=f"Wait until it ends, then run: {command}",
            ) from None
        yield


def unfinished_bytes(folder: Path) -> int:
    """Return the bytes of unfinished downloads in a folder: ours and huggingface_hub's."""
    ours = (folder / _PARTS).glob("*")  # the lock among them has no bytes
    theirs = (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete")
    return sum(size_on_disk(file) for file in (*ours, *theirs))


def remove_parts(folder: Path) -> None:
    """Delete all parts, those of other revisions too."""
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
