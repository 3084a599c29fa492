"""Replicas that find a place on the machine or do not; each problem with what helps."""

from pathlib import Path

import pytest

from serve_app.core.capacity.placement import ReplicaDemand
from serve_app.doctor.checks.capacity import (
    check_placement,
)
from serve_app.doctor.finding import Finding, fail, fine


def demand(count: int, gpus: float, cpus: float = 0.1, name: str = "Base") -> ReplicaDemand:
    return ReplicaDemand(name, count, {"GPU": gpus, "CPU": cpus})


EDIT = '"${EDITOR:-vi}" serve_config.yaml'


@pytest.mark.parametrize(
    ("demands", "num_gpus", "finding"),
    [
        ([demand(1, 1), demand(1, 1)], 2, fine("gpus", "2 replicas need 2 of 2 GPUs")),
        ([demand(2, 0.5)], 1, fine("gpus", "2 replicas need 1 of 1 GPU")),
        (
            [demand(3, 1)],
            2,
            fail(
                "gpus",
                "Base can't start: 3 replicas need 1 GPU and 0.1 CPU each, and Ray has 2 GPU and "
                "4 CPU on 1 node, with room for 2",
                EDIT,
            ),
        ),
        (
            [demand(1, 1)],
            0,
            fail(
                "gpus",
                "Base can't start: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU and 4 CPU "
                "on 1 node",
                EDIT,
            ),
        ),
        (
            [demand(1, 0, 8)],
            0,
            fail(
                "cpus",
                "Base can't start: 1 replica needs 8 CPU, and Ray has 4 CPU on 1 node",
                EDIT,
            ),
        ),
    ],
)
def test_every_replica_needs_what_it_requests(
    demands: list[ReplicaDemand], num_gpus: int, finding: Finding
) -> None:
    assert check_placement(demands, 4, num_gpus, Path("serve_config.yaml")) == finding
