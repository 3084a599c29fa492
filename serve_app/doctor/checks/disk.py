"""The disk: whether the ledger can be kept where it is to be, and how much room is left.

Leaves nothing behind: what must be writable is tried with a file that has no name.
"""

import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serve_app.doctor.checks.gpu_probe import gib
from serve_app.doctor.finding import Finding, fail, fine, warn

_LEAST, _LITTLE = 1 << 30, 5 << 30  # bytes: the ledger alone keeps half a GiB of answers
_MAGIC = b"SQLite format 3\0"
_FULL = 0.95  # of a disk: from there on Ray writes nothing more to it


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that the service writes to, and the disk under it."""

    what: str
    folder: Path
    free: int  # bytes
    total: int


def probe(what: str, folder: Path) -> Place:
    """A folder that is there, or will be."""
    there = _nearest(folder)
    usage = shutil.disk_usage(there)
    return Place(what, there, usage.free, usage.total)


def check_room(places: list[Place]) -> Finding:
    """Whether each disk has room for what the service writes."""
    for place in places:
        said = f"{gib(place.free)} of {gib(place.total)} free in {place.folder} ({place.what})"
        mend = f"du -xhd1 {shlex.quote(str(place.folder))} | sort -h"
        if place.free < _LEAST:
            return fail("disk", f"{said}: {gib(_LEAST)} are needed", mend)
        if place.free < place.total * (1 - _FULL):
            return warn("disk", f"{said}: Ray writes no more to a disk that is 95 % full", mend)
        if place.free < _LITTLE:
            return warn("disk", f"{said}: under {gib(_LITTLE)} it gets tight", mend)
    disks: dict[tuple[int, int], list[str]] = {}
    for place in places:
        disks.setdefault((place.free, place.total), []).append(place.what)
    told = [f"{gib(free)} for {', '.join(held)}" for (free, _), held in disks.items()]
    return fine("disk", f"free: {'; '.join(told)}")


def check_ledger(file: Path) -> Finding:
    """Whether the ledger can be opened, or made, where the settings have it."""
    elsewhere = "LEDGER_FILE="
    if file.is_dir():
        return fail("ledger", f"{file} is a folder, and must be a file", elsewhere)
    there = _nearest(file.parent)
    if not there.is_dir():
        return fail("ledger", f"{file} can't be made: {there} is a file, no folder", elsewhere)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return fail(
            "ledger",
            f"{file} can't be kept: {there} can't be written to ({error.strerror})",
            f"sudo chown -R $USER {shlex.quote(str(there))}",
        )
    if file.exists() and not _is_database(file):
        return fail(
            "ledger",
            f"{file} is no ledger: something else than an SQLite database lies there",
            f"mv {shlex.quote(str(file))} {shlex.quote(str(file))}.other",
        )
    return fine("ledger", f"{file} can be kept")


def _is_database(file: Path) -> bool:
    """Whether SQLite would take the file: one that begins as its files do, or an empty one."""
    with file.open("rb") as stream:
        return stream.read(len(_MAGIC)) in (_MAGIC, b"")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
