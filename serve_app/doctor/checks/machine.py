"""The machine and its Python: platform, packages, memory, clock. No torch, no settings.

Stands on the standard library alone, so that it can be asked where nothing else is installed.
"""

import ctypes
import ctypes.util
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

OLDEST = (3, 11)
INSTALL = "python -m pip install -e ."
_NAME = re.compile(r"[\w.-]+")
_DAY = 86_400.0
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is true of this machine, whatever the settings say."""

    python: tuple[int, int, int]
    isolated: bool  # whether in a virtual environment
    system: str  # "Linux", "Darwin", "Windows"
    release: str
    architecture: str
    distribution: str  # of WSL, "" elsewhere
    lacking: tuple[str, ...] | None  # requirements not met; None where they can't be told
    memory: int  # bytes of RAM that could be taken now, 0 where that can't be told
    now: float  # seconds since 1970, by the clock
    newest: float  # when the newest file of this package was written
    synchronised: bool | None  # whether the kernel calls its clock so; None where it can't be told

    @property
    def is_wsl(self) -> bool:
        """Whether this Linux is one inside Windows."""
        return "microsoft" in self.release.lower()


def probe() -> Machine:
    """This machine."""
    package = Path(__file__).parents[2]
    return Machine(
        python=sys.version_info[:3],
        isolated=sys.prefix != sys.base_prefix,
        system=platform.system(),
        release=platform.release(),
        architecture=platform.machine(),
        distribution=os.environ.get("WSL_DISTRO_NAME", ""),
        lacking=_lacking(),
        memory=_memory(),
        now=time.time(),
        newest=max(file.stat().st_mtime for file in package.rglob("*.py")),
        synchronised=_synchronised(),
    )


def check_python(machine: Machine) -> Finding:
    """Whether this Python is new enough."""
    version = ".".join(map(str, machine.python))
    if machine.python < OLDEST:
        return fail(
            "python",
            f"Python {version} is too old: {'.'.join(map(str, OLDEST))} or newer is needed",
            "rm -rf .venv && make serve PYTHON=python3.11",
        )
    where = "in a virtual environment" if machine.isolated else "outside any virtual environment"
    return fine("python", f"Python {version}, {where}")


def check_platform(machine: Machine) -> Finding:
    """Whether the service runs on this kind of system."""
    named = f"{machine.system} {machine.release}, {machine.architecture}"
    if machine.system == "Windows":
        return fail(
            "platform",
            f"{named}: this service runs on Linux and macOS, and on Windows inside WSL 2",
            "wsl --install Ubuntu",
        )
    if machine.is_wsl and "wsl2" not in machine.release.lower():
        return fail(
            "platform",
            f"{named}: this is WSL 1, which has neither GPU nor shared memory for Ray; WSL 2 is "
            "needed (the command is for PowerShell)",
            f"wsl --set-version {machine.distribution or 'Ubuntu'} 2",
        )
    if machine.system not in ("Linux", "Darwin"):
        return warn(
            "platform",
            f"{named}: nobody has tried this service here; Linux and macOS are known to run it",
            "make test",
        )
    return fine("platform", f"{named}{', inside WSL 2' if machine.is_wsl else ''}")


def check_packages(machine: Machine) -> Finding:
    """Whether the installed packages are those that pyproject.toml asks for."""
    if machine.lacking is None:
        return warn(
            "packages",
            "aura-serve itself is not installed, so what it requires can't be compared",
            INSTALL,
        )
    if machine.lacking:
        return fail("packages", f"not as required: {', '.join(machine.lacking)}", INSTALL)
    return fine("packages", "all that is required is installed, in the versions required")


def check_clock(machine: Machine) -> Finding:
    """Whether the clock can be right, as far as that shows without asking another machine."""
    told = f"the clock says {_date(machine.now)}"
    mend = "sudo hwclock --hctosys" if machine.is_wsl else "sudo timedatectl set-ntp true"
    if machine.system == "Darwin":
        mend = "sudo sntp -sS time.apple.com"
    if machine.now < machine.newest - _DAY:
        return fail(
            "clock",
            f"{told}, but a file of this package was written {_date(machine.newest)}: with a "
            "wrong clock certificates don't verify, and jobs and allowances expire at wrong times",
            mend,
        )
    if machine.synchronised is None or machine.is_wsl:  # Windows sets a WSL clock, unknown to it
        return skip("clock", f"{told}; whether it is kept right can't be told here")
    if not machine.synchronised:
        return warn("clock", f"{told}, and nothing keeps it right: the kernel says so", mend)
    return fine("clock", f"{told}, kept right by the network")


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _lacking() -> tuple[str, ...] | None:
    """The requirements of this package that are not met, each with what is there instead."""
    try:
        asked = metadata.requires("aura-serve") or []
    except metadata.PackageNotFoundError:
        return None
    lacking = []
    for line in asked:
        wish, _, condition = line.partition(";")
        if "extra" in condition:
            continue
        name = _NAME.match(wish)
        assert name is not None, line
        try:
            version = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            lacking.append(f"{name[0]} is missing")
            continue
        if not _satisfies(wish, version):
            lacking.append(f"{wish.strip()} is {version}")
    return tuple(lacking)


def _satisfies(wish: str, version: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(wish).specifier.contains(version, prereleases=True)


def _memory() -> int:
    """Bytes that could be taken now, within the limit of a container."""
    left = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        left += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    if not left:
        with suppress(OSError, ValueError, AttributeError):
            left.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        left.append(most - int((group / "memory.current").read_text()))
    return max(0, min(left, default=0))


def _synchronised() -> bool | None:
    """What the kernel says of its clock: adjtimex(2), asked without changing anything."""
    if sys.platform != "linux":
        return None
    times = (ctypes.c_long * 64)()  # struct timex, which is shorter; modes = 0 reads
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(times))
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(times, 5 * ctypes.sizeof(ctypes.c_long)).value
    return not status & _UNSYNCHRONISED
