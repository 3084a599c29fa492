"""Whether replicas fit on nodes: parts of GPUs, whole ones, and what else they request."""

import pytest

from serve_app.core.capacity.placement import (
    Cluster,
    ReplicaDemand,
    Resources,
    amounts,
    find_shortage,
)

SMALL = {"CPU": 4.0}
ONE_GPU = {"CPU": 4.0, "GPU": 1.0}
TWO_GPUS = {"CPU": 4.0, "GPU": 2.0}


def demand(count: int, name: str = "Base", **resources: float) -> ReplicaDemand:
    return ReplicaDemand(name, count, resources)


@pytest.mark.parametrize(
    ("demands", "nodes"),
    [
        ([], [SMALL]),
        ([demand(3, CPU=1, GPU=0)], [SMALL]),
        ([demand(2, GPU=0.5)], [ONE_GPU]),
        ([demand(3, GPU=1 / 3)], [ONE_GPU]),
        ([demand(1, GPU=0.3), demand(1, GPU=0.7)], [ONE_GPU]),
        ([demand(1, GPU=0.4), demand(1, GPU=0.4), demand(1, GPU=1)], [TWO_GPUS]),
        ([demand(1, GPU=2), demand(1, GPU=1)], [ONE_GPU, TWO_GPUS]),
        ([demand(2, CPU=3)], [SMALL, SMALL]),
        ([demand(1, CPU=1, fast_disk=1)], [SMALL, {"CPU": 1, "fast_disk": 1}]),
        ([demand(0, GPU=1)], [SMALL]),
    ],
)
def test_replicas_that_fit_lack_nothing(
    demands: list[ReplicaDemand], nodes: list[Resources]
) -> None:
    assert find_shortage(demands, nodes) is None


@pytest.mark.parametrize(
    ("demands", "nodes", "sentence"),
    [
        ([demand(1, GPU=1)], [SMALL], "1 replica needs 1 GPU, and Ray has 0 GPU on 1 node"),
        (
            [demand(3, GPU=0.6)],  # 1.8 GPUs in all, but no part may lie on two
            [TWO_GPUS],
            "3 replicas need 0.6 GPU each, and Ray has 2 GPU on 1 node, with room for 2",
        ),
        (
            [demand(1, GPU=2)],
            [ONE_GPU, ONE_GPU],
            "1 replica needs 2 GPU, and Ray has 2 GPU on 2 nodes",
        ),
        (
            [demand(1, CPU=5, GPU=1)],
            [TWO_GPUS, SMALL],
            "1 replica needs 5 CPU and 1 GPU, and Ray has 8 CPU and 2 GPU on 2 nodes",
        ),
        (
            [demand(1, CPU=1, GPU=1, fast_disk=1)],
            [TWO_GPUS],
            "1 replica needs 1 CPU, 1 GPU and 1 fast_disk, and Ray has 4 CPU, 2 GPU and "
            "0 fast_disk on 1 node",
        ),
        ([demand(1, memory=8e9)], [], "1 replica needs 8e+09 memory, and Ray has 0 memory on 0 no"),
    ],
)
def test_replicas_that_do_not_fit_are_named_with_what_they_need_and_what_there_is(
    demands: list[ReplicaDemand], nodes: list[Resources], sentence: str
) -> None:
    shortage = find_shortage(demands, nodes)
    assert shortage is not None
    assert str(shortage).startswith(sentence)


def test_the_largest_requests_are_placed_first() -> None:
    shortage = find_shortage([demand(4, CPU=1), demand(1, "Large", GPU=1, CPU=2)], [ONE_GPU])
    assert shortage is not None
    assert (shortage.demand.deployment, shortage.placed) == ("Base", 2)


def test_a_cluster_without_a_gpu_is_another_case_than_one_with_too_few() -> None:
    for nodes, lacks_gpu in (([SMALL], True), ([ONE_GPU], False)):
        shortage = find_shortage([demand(2, GPU=1)], nodes)
        assert shortage is not None
        assert shortage.lacks_gpu is lacks_gpu
    shortage = find_shortage([demand(1, CPU=9)], [SMALL])
    assert shortage is not None
    assert not shortage.lacks_gpu


def test_a_cluster_has_the_gpus_of_all_its_nodes() -> None:
    assert Cluster((ONE_GPU, TWO_GPUS, SMALL)).gpus == 3


def test_a_cluster_has_the_cpus_of_all_its_nodes() -> None:
    assert Cluster((SMALL, SMALL)).cpus == 2 * SMALL["CPU"]


def test_resources_in_words() -> None:
    assert amounts({}) == "nothing"
    assert amounts({"GPU": 0.5}) == "0.5 GPU"
