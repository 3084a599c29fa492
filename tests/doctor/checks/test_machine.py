"""Checks of the machine, with machines as values."""

from pathlib import Path

import psutil
import pytest

from serve_app.doctor.checks import machine as checks
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from tests.support.machines import WSL_2, machine

NTP = "sudo timedatectl set-ntp true"
WSL_1 = "4.4.0-19041-Microsoft"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, fine("python", "Python 3.11.9, in a virtual environment")),
        (
            {"python": (3, 13, 0), "in_virtualenv": False},
            fine("python", "Python 3.13.0, outside a virtual environment"),
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
def test_python_must_be_new_enough(changes: dict[str, object], finding: Finding) -> None:
    assert checks.check_python(machine(**changes)) == finding


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
                "Windows 11, AMD64: the service runs on Linux and macOS, and on Windows inside "
                "WSL 2",
                "wsl --install Ubuntu",
            ),
        ),
        (
            {"release": WSL_1, "wsl_distribution": "Debian"},
            fail(
                "platform",
                f"Linux {WSL_1}, x86_64: this is WSL 1, which has no GPU and no shared memory for "
                "Ray; WSL 2 is needed (run the command in PowerShell)",
                "wsl --set-version Debian 2",
            ),
        ),
        (
            {"system": "FreeBSD", "release": "14.1"},
            warn(
                "platform",
                "FreeBSD 14.1, x86_64: the service has been tried on Linux and macOS only",
                "make test",
            ),
        ),
    ],
)
def test_the_platform_must_be_supported(changes: dict[str, object], finding: Finding) -> None:
    assert checks.check_platform(machine(**changes)) == finding


@pytest.mark.parametrize(
    ("unmet", "finding"),
    [
        ((), fine("packages", "all requirements are met")),
        (
            ("rich is missing", "torch<2.14,>=2.13 is 2.4.1"),
            fail(
                "packages",
                "requirements are not met: rich is missing, torch<2.14,>=2.13 is 2.4.1",
                "python -m pip install -e .",
            ),
        ),
        (
            None,
            warn(
                "packages",
                "aura-serve itself is not installed, so its requirements can't be checked",
                "python -m pip install -e .",
            ),
        ),
    ],
)
def test_requirements_must_be_met(unmet: tuple[str, ...] | None, finding: Finding) -> None:
    assert checks.check_packages(machine(unmet_requirements=unmet)) == finding


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, fine("clock", "the clock says 2027-01-15 08:00 UTC, synchronised over the network")),
        (
            {"is_synchronised": False},
            warn(
                "clock",
                "the clock says 2027-01-15 08:00 UTC, and the kernel says that nothing "
                "synchronises it",
                NTP,
            ),
        ),
        (
            {"is_synchronised": None},
            skip(
                "clock",
                "the clock says 2027-01-15 08:00 UTC; this system does not say whether it is "
                "synchronised",
            ),
        ),
        (
            {"is_synchronised": False, "release": WSL_2},
            skip(
                "clock",
                "the clock says 2027-01-15 08:00 UTC; this system does not say whether it is "
                "synchronised",
            ),
        ),
        (
            {"clock": 1_000_000_000.0},
            fail(
                "clock",
                "the clock says 2001-09-09 01:46 UTC, but a file of this package was written "
                "2026-09-21 14:13 UTC: with a wrong clock certificates fail, and jobs and rate "
                "limits expire at wrong times",
                NTP,
            ),
        ),
    ],
)
def test_the_clock_must_be_right(changes: dict[str, object], finding: Finding) -> None:
    assert checks.check_clock(machine(**changes)) == finding


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"release": WSL_2}, "sudo hwclock --hctosys"),
        ({"system": "Darwin"}, "sudo sntp -sS time.apple.com"),
    ],
)
def test_the_clock_is_set_with_the_tool_of_the_system(changes: dict[str, object], fix: str) -> None:
    assert checks.check_clock(machine(clock=0.0, **changes)).fix == fix


def test_this_machine_can_be_probed() -> None:
    probed = checks.probe()
    assert probed.python >= checks.MIN_PYTHON
    assert probed.unmet_requirements == ()
    assert probed.clock > probed.newest_source > 1_000_000_000
    assert 2**28 < probed.available_memory <= psutil.virtual_memory().total


def write_cgroup(folder: Path, limit: str, used: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")


@pytest.mark.parametrize(("used", "expected"), [(300_000, 700_000), (1_200_000, 0)])
def test_a_container_limits_the_available_memory(tmp_path: Path, used: int, expected: int) -> None:
    write_cgroup(tmp_path, "1000000", used)
    assert checks.available_memory(tmp_path) == expected


def test_without_a_limit_all_memory_of_the_machine_is_available(tmp_path: Path) -> None:
    assert checks.available_memory(tmp_path) > 2**28
    write_cgroup(tmp_path, "max", 1_000_000)
    assert checks.available_memory(tmp_path) > 2**28
