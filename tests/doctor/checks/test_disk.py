"""Disks that are nearly full, as values."""

from pathlib import Path

import pytest

from serve_app.doctor.checks.disk import Place, check_room, probe
from serve_app.doctor.finding import Finding, fail, fine, warn
from tests.doctor.conftest import GIB

DU = "du -xhd1 /var/x | sort -h"


def place(free: float, total: float = 100, what: str = "the ledger") -> Place:
    return Place(what, Path("/var/x"), int(free * GIB), int(total * GIB))


@pytest.mark.parametrize(
    ("places", "finding"),
    [
        ([place(50)], fine("disk", "free: 50.0 GiB for the ledger")),
        (
            [place(50), place(30, what="the models"), place(50, what="Ray's files")],
            fine("disk", "free: 50.0 GiB for the ledger, Ray's files; 30.0 GiB for the models"),
        ),
        (
            [place(50), place(0.5, what="Ray's files")],
            fail(
                "disk",
                "0.5 GiB of 100.0 GiB free in /var/x (Ray's files): 1.0 GiB are needed",
                DU,
            ),
        ),
        (
            [place(30, 1000)],
            warn(
                "disk",
                "30.0 GiB of 1000.0 GiB free in /var/x (the ledger): Ray writes no more to a disk "
                "that is 95 % full",
                DU,
            ),
        ),
        (
            [place(4, 20)],
            warn(
                "disk",
                "4.0 GiB of 20.0 GiB free in /var/x (the ledger): under 5.0 GiB it gets tight",
                DU,
            ),
        ),
    ],
)
def test_room_on_the_disk(places: list[Place], finding: Finding) -> None:
    assert check_room(places) == finding


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_will_be(tmp_path: Path) -> None:
    found = probe("the ledger", tmp_path / "state" / "aura")
    assert found.folder == tmp_path and 0 < found.free <= found.total
