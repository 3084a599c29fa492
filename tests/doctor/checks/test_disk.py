"""Disks that are nearly full, as values."""

from pathlib import Path

import pytest

from serve_app.doctor.checks.disk import DiskUsage, check_free_space, probe
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
