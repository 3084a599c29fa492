"""The machine's own checks, on machines that are values."""

import pytest

from serve_app.doctor.checks import machine as room
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from tests.doctor.conftest import SOUND, machine

NT = "sudo timedatectl set-ntp true"
WSL_2, WSL_1 = "5.15.153.1-microsoft-standard-WSL2", "4.4.0-19041-Microsoft"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, fine("python", "Python 3.11.9, in a virtual environment")),
        (
            {"python": (3, 13, 0), "isolated": False},
            fine("python", "Python 3.13.0, outside any virtual environment"),
        ),
        (
            {"python": (3, 9, 18)},
            fail(
                "python",
                "Python 3.9.18 is too old: 3.11 or newer is needed",
                "rm -rf .venv && make serve PYTHON=python3.11",
            ),
        ),
    ],
)
def test_python(changes: dict[str, object], finding: Finding) -> None:
    assert room.check_python(machine(**changes)) == finding


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, fine("platform", "Linux 6.8.0-45-generic, x86_64")),
        (
            {"system": "Darwin", "release": "24.1.0", "architecture": "arm64"},
            fine("platform", "Darwin 24.1.0, arm64"),
        ),
        ({"release": WSL_2}, fine("platform", f"Linux {WSL_2}, x86_64, inside WSL 2")),
        (
            {"system": "Windows", "release": "11", "architecture": "AMD64"},
            fail(
                "platform",
                "Windows 11, AMD64: this service runs on Linux and macOS, and on Windows inside "
                "WSL 2",
                "wsl --install Ubuntu",
            ),
        ),
        (
            {"release": WSL_1, "distribution": "Debian"},
            fail(
                "platform",
                f"Linux {WSL_1}, x86_64: this is WSL 1, which has neither GPU nor shared memory "
                "for Ray; WSL 2 is needed (the command is for PowerShell)",
                "wsl --set-version Debian 2",
            ),
        ),
        (
            {"system": "FreeBSD", "release": "14.1"},
            warn(
                "platform",
                "FreeBSD 14.1, x86_64: nobody has tried this service here; Linux and macOS are "
                "known to run it",
                "make test",
            ),
        ),
    ],
)
def test_platform(changes: dict[str, object], finding: Finding) -> None:
    assert room.check_platform(machine(**changes)) == finding


@pytest.mark.parametrize(
    ("lacking", "finding"),
    [
        ((), fine("packages", "all that is required is installed, in the versions required")),
        (
            ("rich is missing", "torch<2.14,>=2.13 is 2.4.1"),
            fail(
                "packages",
                "not as required: rich is missing, torch<2.14,>=2.13 is 2.4.1",
                "python -m pip install -e .",
            ),
        ),
        (
            None,
            warn(
                "packages",
                "aura-serve itself is not installed, so what it requires can't be compared",
                "python -m pip install -e .",
            ),
        ),
    ],
)
def test_packages(lacking: tuple[str, ...] | None, finding: Finding) -> None:
    assert room.check_packages(machine(lacking=lacking)) == finding


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, fine("clock", "the clock says 2027-01-15 08:00 UTC, kept right by the network")),
        (
            {"synchronised": False},
            warn(
                "clock",
                "the clock says 2027-01-15 08:00 UTC, and nothing keeps it right: the kernel says "
                "so",
                NT,
            ),
        ),
        (
            {"synchronised": None},
            skip(
                "clock",
                "the clock says 2027-01-15 08:00 UTC; whether it is kept right can't be told here",
            ),
        ),
        (
            {"synchronised": False, "release": WSL_2},
            skip(
                "clock",
                "the clock says 2027-01-15 08:00 UTC; whether it is kept right can't be told here",
            ),
        ),
        (
            {"now": 1_000_000_000.0},
            fail(
                "clock",
                "the clock says 2001-09-09 01:46 UTC, but a file of this package was written "
                "2026-09-21 14:13 UTC: with a wrong clock certificates don't verify, and jobs and "
                "allowances expire at wrong times",
                NT,
            ),
        ),
    ],
)
def test_clock(changes: dict[str, object], finding: Finding) -> None:
    assert room.check_clock(machine(**changes)) == finding


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"release": WSL_2}, "sudo hwclock --hctosys"),
        ({"system": "Darwin"}, "sudo sntp -sS time.apple.com"),
    ],
)
def test_a_clock_is_set_as_the_system_has_it(changes: dict[str, object], mend: str) -> None:
    assert room.check_clock(machine(now=0.0, **changes)).fix == mend


def test_this_machine_can_be_looked_at() -> None:
    here = room.probe()
    assert here.python >= room.OLDEST and here.lacking == ()
    assert here.now > here.newest > SOUND.newest - 3e9
    assert here.memory > 2**28
