"""Check the disks: whether Ray can write its files, and how much space is free.

Nothing is left behind: whether a folder is writable is tried with a file that has no name.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.folders import nearest_existing, ray_folder, ray_problems, spool_problem
from serve_app.doctor.checks.gpu_probe import gib
from serve_app.doctor.finding import Finding, fail, fine, problem_of, warn
from serve_app.spool.access import access_problem

_MIN_FREE = 1 << 30  # bytes: the ledger alone keeps up to half a GiB of images
_LOW_FREE = 5 << 30  # bytes
_RAY_LIMIT = 0.95  # Ray writes nothing to a disk that is fuller (RAY_local_fs_capacity_threshold)


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A folder that the service writes to, and its disk."""

    purpose: str
    folder: Path
    free: int  # bytes
    total: int


def probe(purpose: str, folder: Path) -> DiskUsage:
    """Return the disk of a folder, which need not exist yet."""
    existing = nearest_existing(folder)
    usage = shutil.disk_usage(existing)
    return DiskUsage(purpose, existing, usage.free, usage.total)


def check_free_space(usages: list[DiskUsage]) -> Finding:
    """Check that each disk has space for what the service writes."""
    for usage in usages:
        message = (
            f"{gib(usage.free)} of {gib(usage.total)} are free in {usage.folder} ({usage.purpose})"
        )
        fix = f"du -xhd1 {shlex.quote(str(usage.folder))} | sort -h"
        if usage.free < _MIN_FREE:
            return fail("disk", f"{message}, and at least {gib(_MIN_FREE)} are needed", fix)
        if usage.free < usage.total * (1 - _RAY_LIMIT):
            return warn("disk", f"{message}: Ray stops writing to a disk that is 95 % full", fix)
        if usage.free < _LOW_FREE:
            return warn("disk", f"{message}: less than {gib(_LOW_FREE)} may not last", fix)
    disks: dict[tuple[int, int], list[str]] = {}
    for usage in usages:
        disks.setdefault((usage.free, usage.total), []).append(usage.purpose)
    listed = [f"{gib(free)} for {', '.join(purposes)}" for (free, _), purposes in disks.items()]
    return fine("disk", f"free: {'; '.join(listed)}")


def check_ray_folders(environ: Mapping[str, str]) -> Finding:
    """Check that Ray can write its files, its shared memory and its token."""
    for problem in ray_problems(environ):
        fix = f"unset {problem.variable}" if problem.variable else "df -h /dev/shm"
        if problem.variable == "HOME":
            fix = "export HOME=$(getent passwd $(id -u) | cut -d: -f6)"
        return fail("ray files", problem_of(problem), fix)
    return fine("ray files", f"Ray can write to {ray_folder(environ)} and to its token's file")


def check_spool(folder: Path) -> Finding:
    """Check that the service could keep in DRAIN_SPOOL what a stop leaves, and nobody else read it.

    Files that were set aside there are worth a look.
    """
    name = shlex.quote(str(folder))
    if problem := spool_problem(folder):
        is_open = folder.is_dir() and folder.stat().st_uid == os.geteuid()
        fix = f"chmod 700 {name}" if is_open and access_problem(folder.stat()) else "DRAIN_SPOOL="
        return fail("spool", f"DRAIN_SPOOL={folder} {problem}", fix)
    refused = sorted(folder.glob("*.refused")) if folder.is_dir() else []
    if refused:
        files = " ".join(shlex.quote(str(file)) for file in refused)
        message = f"{len(refused)} file(s) in {folder} could not be used, and were set aside"
        return warn("spool", f"{message}: the log says why", f"rm {files}")
    return fine("spool", f"{folder} can be written, and nobody else can read it")
