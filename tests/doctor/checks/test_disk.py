"""Disks that are nearly full, as values."""

from pathlib import Path

import pytest

from serve_app.doctor.checks.disk import DiskUsage, check_free_space, check_spool, probe
from serve_app.doctor.finding import Finding, fail, fine, warn
from tests.support.machines import GIB

DU = "du -xhd1 /var/x | sort -h"


def usage(free: float, total: float = 100, purpose: str = "the ledger") -> DiskUsage:
    return DiskUsage(purpose, Path("/var/x"), int(free * GIB), int(total * GIB))


@pytest.mark.parametrize(
    ("usages", "finding"),
    [
        ([usage(50)], fine("disk", "free: 50.0 GiB for the ledger")),
        (
            [usage(50), usage(30, purpose="the models"), usage(50, purpose="Ray's files")],
            fine("disk", "free: 50.0 GiB for the ledger, Ray's files; 30.0 GiB for the models"),
        ),
        (
            [usage(50), usage(0.5, purpose="Ray's files")],
            fail(
                "disk",
                "0.5 GiB of 100.0 GiB are free in /var/x (Ray's files), and at least 1.0 GiB are "
                "needed",
                DU,
            ),
        ),
        (
            [usage(30, 1000)],
            warn(
                "disk",
                "30.0 GiB of 1000.0 GiB are free in /var/x (the ledger): Ray stops writing to a "
                "disk that is 95 % full",
                DU,
            ),
        ),
        (
            [usage(4, 20)],
            warn(
                "disk",
                "4.0 GiB of 20.0 GiB are free in /var/x (the ledger): less than 5.0 GiB may not "
                "last",
                DU,
            ),
        ),
    ],
)
def test_every_disk_needs_free_space(usages: list[DiskUsage], finding: Finding) -> None:
    assert check_free_space(usages) == finding


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    usage = probe("the ledger", tmp_path / "state" / "aura")
    assert usage.folder == tmp_path
    assert 0 < usage.free <= usage.total


def test_a_spool_is_private_and_what_was_set_aside_in_it_is_shown(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    good = fine("spool", f"{spool} can be written, and nobody else can read it")
    assert check_spool(spool) == good
    spool.mkdir(mode=0o755)
    spool.chmod(0o755)
    message = f"DRAIN_SPOOL={spool} is open to other users (mode 0755)"
    assert check_spool(spool) == fail("spool", message, f"chmod 700 {spool}")
    spool.chmod(0o700)
    assert check_spool(spool) == good
    refused = spool / f"{'a' * 32}.safetensors.refused"
    refused.touch()
    message = f"1 file(s) in {spool} could not be used, and were set aside: the log says why"
    assert check_spool(spool) == warn("spool", message, f"rm {refused}")
    file = tmp_path / "file"
    file.touch()
    message = f"DRAIN_SPOOL={file} is not a folder"
    assert check_spool(file) == fail("spool", message, "DRAIN_SPOOL=")
