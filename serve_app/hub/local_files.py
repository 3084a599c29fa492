"""What of a repository lies in its folder: whole, begun, or not at all; and whether the rest fits.

Knows no network. A file that is still coming lies among the parts, called by the hash it will
have: a part is never continued with another content, and a name in the folder is always whole.
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
_CHUNK = 1 << 20
_SPARE = 500_000_000  # bytes that stay free: a full disk stops more than a download


def part_of(folder: Path, entry: RepoFile) -> Path:
    """Where the file lies while it comes."""
    return folder / _PARTS / entry.hash


def size_there(file: Path) -> int:
    """The bytes of a file, 0 when there is none."""
    return file.stat().st_size if file.is_file() else 0


def matches(
    entry: RepoFile, stream: BinaryIO, tell: Callable[[int], object] = lambda _: None
) -> bool:
    """Whether the content is what the hub promised; `tell` gets each count of bytes read."""
    digest = hashlib.sha256() if entry.sha256 else hashlib.sha1(f"blob {entry.size}\0".encode())
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        tell(len(chunk))
    return digest.hexdigest() == entry.hash


def sized(entries: Iterable[RepoFile], folder: Path) -> tuple[RepoFile, ...]:
    """The files that are there in their right size, and so are worth a look inside."""
    files = ((entry, folder / entry.path) for entry in entries)
    return tuple(e for e, file in files if file.is_file() and file.stat().st_size == e.size)


def missing(
    entries: Iterable[RepoFile], folder: Path, tell: Callable[[int], object] = lambda _: None
) -> tuple[RepoFile, ...]:
    """The files that are not there whole: each one that is has been read and verified."""
    entries = tuple(entries)
    whole = set()
    for entry in sized(entries, folder):
        with (folder / entry.path).open("rb") as stream:
            if matches(entry, stream, tell):
                whole.add(entry)
    return tuple(entry for entry in entries if entry not in whole)


def begun(entries: Iterable[RepoFile], folder: Path) -> int:
    """How many bytes of these files have come already, and will not be asked for again."""
    sizes = ((size_there(part_of(folder, entry)), entry.size or 0) for entry in entries)
    return sum(there for there, size in sizes if there <= size)


def free_bytes(folder: Path) -> int:
    """The free space of the disk that the folder lies on, or will lie on."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_free_space(needed: int, free: int, folder: Path, again: str) -> None:
    """Returns when so many bytes fit, with some to spare. Raises `DownloadError`."""
    if needed and needed + _SPARE > free:
        raise DownloadError(
            f"{folder} has {decimal(free)} free, and {decimal(needed + _SPARE)} are needed: "
            f"{decimal(needed)} are still to fetch, {decimal(_SPARE)} stay free. Make room or "
            f"choose another disk with --folder, then: {again}"
        )


@contextmanager
def alone(folder: Path, again: str) -> Iterator[None]:
    """Nobody else fetches into the folder meanwhile. Raises `DownloadError` when somebody does."""
    import fcntl  # not on Windows, where `doctor` alone gets as far as this file

    parts = folder / _PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"another download into {folder} is running: wait for its end, then: {again}"
            ) from None
        yield


def unfinished(folder: Path) -> int:
    """The bytes of files that began to come into the folder and did not end, by our own download
    or by huggingface_hub's.
    """
    ours = (folder / _PARTS).glob("*")  # the lock among them has no bytes
    foreign = (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete")
    return sum(size_there(file) for file in (*ours, *foreign))


def tidy(folder: Path) -> None:
    """No parts are left, those of other revisions neither."""
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
