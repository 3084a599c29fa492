"""Check the machine and its Python: platform, packages, memory, clock. No torch, no settings.

At import it needs nothing but the standard library, so that it can report a half installed
package.
"""

import ctypes
import os
import platform
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from serve_app.doctor.finding import Finding, fail, fine, skip, warn

MIN_PYTHON = (3, 11)
INSTALL_COMMAND = "python -m pip install -e ."
_NAME = re.compile(r"[\w.-]+")
_DAY = 86_400.0  # seconds
_CGROUP = Path("/sys/fs/cgroup")
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about this machine that do not depend on the settings."""

    python: tuple[int, int, int]
    in_virtualenv: bool
    system: str  # "Linux", "Darwin", "Windows"
    release: str
    architecture: str
    wsl_distribution: str  # "" outside WSL
    unmet_requirements: tuple[str, ...] | None  # None if this package is not installed
    available_memory: int  # bytes of RAM, 0 if unknown
    clock: float  # seconds since 1970
    newest_source: float  # when the newest file of this package was written
    is_synchronised: bool | None  # whether the kernel says so of its clock; None if unknown
    has_bf16: bool  # whether the processor computes bf16

    @property
    def is_wsl(self) -> bool:
        """Whether this Linux runs inside Windows."""
        return "microsoft" in self.release.lower()


def probe() -> Machine:
    """Probe this machine."""
    package = Path(__file__).parents[2]
    return Machine(
        python=sys.version_info[:3],
        in_virtualenv=sys.prefix != sys.base_prefix,
        system=platform.system(),
        release=platform.release(),
        architecture=platform.machine(),
        wsl_distribution=os.environ.get("WSL_DISTRO_NAME", ""),
        unmet_requirements=_unmet_requirements(),
        available_memory=available_memory(),
        clock=time.time(),
        newest_source=max(file.stat().st_mtime for file in package.rglob("*.py")),
        is_synchronised=_is_synchronised(),
        has_bf16=_has_bf16(),
    )


def check_python(machine: Machine) -> Finding:
    """Check that this Python is new enough."""
    version = ".".join(map(str, machine.python))
    if machine.python < MIN_PYTHON:
        return fail(
            "python",
            f"Python {version} is too old: {'.'.join(map(str, MIN_PYTHON))} or newer is needed",
            "rm -rf .venv && make serve PYTHON=python3.11",
        )
    where = "in" if machine.in_virtualenv else "outside"
    return fine("python", f"Python {version}, {where} a virtual environment")


def check_platform(machine: Machine) -> Finding:
    """Check that the service runs on this operating system."""
    name = f"{machine.system} {machine.release}, {machine.architecture}"
    if machine.system == "Windows":
        return fail(
            "platform",
            f"{name}: the service runs on Linux and macOS, and on Windows inside WSL 2",
            "wsl --install Ubuntu",
        )
    if machine.is_wsl and "wsl2" not in machine.release.lower():
        return fail(
            "platform",
            f"{name}: this is WSL 1, which has no GPU and no shared memory for Ray; WSL 2 is "
            "needed (run the command in PowerShell)",
            f"wsl --set-version {machine.wsl_distribution or 'Ubuntu'} 2",
        )
    if machine.system not in ("Linux", "Darwin"):
        return warn(
            "platform",
            f"{name}: the service has been tried on Linux and macOS only",
            "make test",
        )
    return fine("platform", f"{name}{', inside WSL 2' if machine.is_wsl else ''}")


def check_packages(machine: Machine) -> Finding:
    """Check that the installed packages meet the requirements in pyproject.toml."""
    if machine.unmet_requirements is None:
        return warn(
            "packages",
            "aura-serve itself is not installed, so its requirements can't be checked",
            INSTALL_COMMAND,
        )
    if machine.unmet_requirements:
        unmet = ", ".join(machine.unmet_requirements)
        return fail("packages", f"requirements are not met: {unmet}", INSTALL_COMMAND)
    return fine("packages", "all requirements are met")


def check_clock(machine: Machine) -> Finding:
    """Check that the clock can be right, as far as this machine alone can show."""
    message = f"the clock says {_utc(machine.clock)}"
    fix = "sudo hwclock --hctosys" if machine.is_wsl else "sudo timedatectl set-ntp true"
    if machine.system == "Darwin":
        fix = "sudo sntp -sS time.apple.com"
    if machine.clock < machine.newest_source - _DAY:
        return fail(
            "clock",
            f"{message}, but a file of this package was written {_utc(machine.newest_source)}: "
            "with a wrong clock certificates fail, and jobs and rate limits expire at wrong times",
            fix,
        )
    if machine.is_synchronised is None or machine.is_wsl:  # Windows sets the clock of WSL
        return skip("clock", f"{message}; this system does not say whether it is synchronised")
    if not machine.is_synchronised:
        return warn("clock", f"{message}, and the kernel says that nothing synchronises it", fix)
    return fine("clock", f"{message}, synchronised over the network")


def _utc(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _unmet_requirements() -> tuple[str, ...] | None:
    """Return the requirements that are not met, each with what is installed instead."""
    try:
        requirements = metadata.requires("aura-serve") or []
    except metadata.PackageNotFoundError:
        return None
    unmet = []
    for line in requirements:
        requirement, _, condition = line.partition(";")
        if "extra" in condition:
            continue
        name = _NAME.match(requirement)
        assert name is not None, line
        try:
            version = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            unmet.append(f"{name[0]} is missing")
            continue
        if not _is_met(requirement, version):
            unmet.append(f"{requirement.strip()} is {version}")
    return tuple(unmet)


def _is_met(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _has_bf16() -> bool:
    from serve_app.config.processor import has_bf16

    return has_bf16()


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return the bytes that can be allocated now, within the limit of a container (cgroup v2)."""
    import psutil

    available: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no such files, or no limit ("max")
        limit = int((cgroup / "memory.max").read_text())
        available = min(available, limit - int((cgroup / "memory.current").read_text()))
    return max(0, available)


def _is_synchronised() -> bool | None:
    """Return what the kernel says of its clock: adjtimex(2), called so that it only reads."""
    if sys.platform != "linux":
        return None
    times = (ctypes.c_long * 64)()  # longer than struct timex; modes = 0 reads
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(times))
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(times, 5 * ctypes.sizeof(ctypes.c_long)).value
    return not status & _UNSYNCHRONISED
