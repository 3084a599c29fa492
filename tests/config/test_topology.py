"""The deployments that the args of a config come to: how many, with how many GPUs each."""

from typing import Any

import pytest

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import find_checkpoints
from serve_app.config.settings import Settings
from serve_app.config.topology import Topology, ingress_scale, plan_stages
from serve_app.core.capacity.placement import Cluster, find_shortage
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError

HALF = DeploymentScale(num_gpus=0.5)
DEFAULT = AppArgs()
SHIPPED = AppArgs.model_validate({"base": {"min_replicas": 1}, "refiner": {"min_replicas": 1}})
MANY = AppArgs(base=DeploymentScale(min_replicas=2, max_replicas=8))
PART = AppArgs(base=DeploymentScale(num_gpus=0.25), refiner=DeploymentScale(min_replicas=2))
FIXED = AppArgs(base=DeploymentScale(num_gpus=1), refiner=DeploymentScale(min_replicas=2))
PAIR = AppArgs(combined=DeploymentScale(min_replicas=2))
COLD = AppArgs(refiner=DeploymentScale(min_replicas=0, max_replicas=2))
SCALING = AppArgs(base=DeploymentScale(max_replicas=3), refiner=DeploymentScale(max_replicas=2))


def shares(args: AppArgs, gpus: float, *, refiner: bool = True) -> set[float]:
    """Return the GPUs of each replica whose args don't say."""
    topology = Topology.resolve(args, "cuda", gpus, refiner=refiner)
    return {stage.num_gpus for stage in topology.deployments if stage.scale.num_gpus is None}


@pytest.mark.parametrize(
    ("args", "gpus", "refiner", "share"),
    [
        (SHIPPED, 2, True, 1),
        (SHIPPED, 1, True, 1),  # where both stages take turns
        (SHIPPED, 1, False, 1),
        (SHIPPED, 0, True, 1),  # GPU nodes may join later
        (MANY, 1, True, 1 / 3),
        (MANY, 2, True, 1 / 2),
        (MANY, 3, True, 1),
        (FIXED, 2, True, 1 / 2),  # one GPU is taken already
        (FIXED, 1, True, 1),
        (PART, 1, True, 0.37),  # of what base leaves of the GPU
        (PAIR, 2, True, 1),
        (PAIR, 1, True, 1 / 2),
        (PAIR, 1, False, 1 / 2),
        (COLD, 1, True, 1 / 2),  # a stage that may have no replica keeps room for one
        (COLD, 2, True, 1),
    ],
)
def test_replicas_share_gpus_where_there_are_fewer_than_replicas(
    args: AppArgs, gpus: int, refiner: bool, share: float
) -> None:
    assert shares(args, gpus, refiner=refiner) == {share}


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [("cuda", None, 1), ("cpu", None, 0), ("mps", None, 0), ("cpu", 1, 1), ("cuda", 0, 0)],
)
def test_num_gpus_of_the_args_wins_over_the_share(
    device: str, num_gpus: float | None, expected: float
) -> None:
    args = AppArgs(base=DeploymentScale(num_gpus=num_gpus))
    (stage,) = Topology.resolve(args, device, 1, refiner=False).deployments
    assert stage.num_gpus == expected


def test_replicas_share_the_gpus_that_the_stages_may_use_not_those_that_exist() -> None:
    topology = Topology.resolve(SCALING, "cuda", 8, refiner=True, total_gpus=1)
    assert [stage.num_gpus for stage in topology.deployments] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("args", "device", "gpus", "refiner", "names"),
    [
        (DEFAULT, "cuda", 1, True, ["BaseAndRefiner"]),
        (SHIPPED, "cuda", 1, True, ["BaseAndRefiner"]),
        (SHIPPED, "cuda", 1, False, ["BaseGenerator"]),
        (SHIPPED, "cuda", 2, True, ["BaseGenerator", "Refiner"]),
        (SHIPPED, "cuda", 0, True, ["BaseGenerator", "Refiner"]),  # GPU nodes may join later
        (SHIPPED, "cpu", 1, True, ["BaseGenerator", "Refiner"]),
        (SHIPPED, "mps", 0, True, ["BaseGenerator", "Refiner"]),
        (MANY, "cuda", 1, True, ["BaseGenerator", "Refiner"]),
        (PART, "cuda", 1, True, ["BaseGenerator", "Refiner"]),
        (AppArgs(combined=HALF), "cuda", 1, True, ["BaseAndRefiner"]),
        (AppArgs(combined=HALF), "cpu", 4, True, ["BaseAndRefiner"]),
        (AppArgs(combined=HALF), "cpu", 4, False, ["BaseGenerator"]),
    ],
)
def test_stages_take_turns_on_the_only_gpu_unless_the_args_scale_either(
    args: AppArgs, device: str, gpus: int, refiner: bool, names: list[str]
) -> None:
    topology = Topology.resolve(args, device, gpus, refiner=refiner)
    assert [stage.name for stage in topology.deployments] == names
    stages = [stage for deployment in topology.deployments for stage in deployment.stages]
    assert stages == ([Stage.BASE, Stage.REFINER] if refiner else [Stage.BASE])


def test_each_deployment_has_the_scale_of_its_section() -> None:
    scales = [
        stage.scale for stage in Topology.resolve(SCALING, "cuda", 8, refiner=True).deployments
    ]
    assert scales == [SCALING.base, SCALING.refiner]
    (alone,) = Topology.resolve(PAIR, "cuda", 2, refiner=False).deployments
    assert alone.scale == PAIR.combined
    (only,) = Topology.resolve(DEFAULT, "cuda", 1, refiner=True).deployments
    assert only.scale == DeploymentScale()


def test_the_largest_number_of_replicas_counts_all_stages() -> None:
    assert Topology.resolve(SCALING, "cuda", 8, refiner=True).max_replicas == 5
    assert Topology.resolve(SCALING, "cuda", 8, refiner=False).max_replicas == 3


def test_stages_that_may_have_no_replica_are_named() -> None:
    assert Topology.resolve(COLD, "cuda", 2, refiner=True).scale_to_zero == (Stage.REFINER,)
    assert Topology.resolve(COLD, "cuda", 2, refiner=False).scale_to_zero == ()
    assert Topology.resolve(SCALING, "cuda", 2, refiner=True).scale_to_zero == ()


def two(base: DeploymentScale, refiner: DeploymentScale) -> AppArgs:
    return AppArgs(base=base, refiner=refiner)


@pytest.mark.parametrize(
    ("args", "total", "device", "refiner", "limit"),
    [
        (SCALING, 4, "cuda", True, 4),
        (SCALING, None, "cuda", True, None),
        (SCALING, 4, "cpu", True, None),  # which asks for no GPU
        (SCALING, 2, "cuda", False, 2),
        (two(DeploymentScale(max_replicas=9, num_gpus=0.5), HALF), 4, "cpu", True, 7),
        (
            two(DeploymentScale(max_replicas=9, num_gpus=2), DeploymentScale(num_gpus=2)),
            7,
            "cuda",
            True,
            2,
        ),
        (
            two(DeploymentScale(min_replicas=3), DeploymentScale(max_replicas=2)),
            4,
            "cuda",
            True,
            1,
        ),
        (
            two(DeploymentScale(max_replicas=2), DeploymentScale(min_replicas=0, max_replicas=2)),
            2,
            "cuda",
            True,
            2,
        ),
        (AppArgs(combined=DeploymentScale(max_replicas=6)), 4, "cuda", True, 4),
        (two(DeploymentScale(min_replicas=3), DeploymentScale()), 4, "cuda", True, 0),
    ],
)
def test_total_gpus_limits_the_replicas_of_the_stages_that_autoscale(
    args: AppArgs, total: int | None, device: str, refiner: bool, limit: int | None
) -> None:
    topology = Topology.resolve(args, device, 16, refiner=refiner, total_gpus=total)
    assert topology.max_total_replicas == limit


WHOLE = two(
    DeploymentScale(max_replicas=3, num_gpus=1), DeploymentScale(max_replicas=2, num_gpus=1)
)


@pytest.mark.parametrize(
    ("args", "total", "message"),
    [
        (WHOLE, 1, "has room for 1 replicas of 1 GPUs, and the stages need 2. Set TOTAL_GPUS=2"),
        (
            two(
                DeploymentScale(min_replicas=3, num_gpus=1),
                DeploymentScale(min_replicas=0, max_replicas=1, num_gpus=1),
            ),
            3,
            "need 4",
        ),
        (
            two(DeploymentScale(num_gpus=2), DeploymentScale(num_gpus=2)),
            3,
            "Set TOTAL_GPUS=4, or lower min_replicas or num_gpus",
        ),
        (
            two(DeploymentScale(num_gpus=1), HALF),
            4,
            "the same num_gpus, not 0.5 and 1. Make them equal",
        ),
    ],
)
def test_total_gpus_that_are_too_few_or_not_divisible_are_an_error(
    args: AppArgs, total: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        Topology.resolve(args, "cuda", 16, refiner=True, total_gpus=total)
    assert refused.value.variable == "TOTAL_GPUS"


ONE_GPU_CONFIG = AppArgs(combined=DeploymentScale(num_gpus=1))
MACHINE = {"CPU": 2.0}


@pytest.mark.parametrize(
    ("args", "nodes", "sentence"),
    [
        (
            ONE_GPU_CONFIG,
            (MACHINE,),
            "BaseAndRefiner can't start: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU and "
            "2 CPU on 1 node. Check nvidia-smi, or use a config for a machine without a GPU",
        ),
        (
            AppArgs(ingress=DeploymentScale(min_replicas=3, num_cpus=1)),
            (MACHINE,),
            "Ingress can't start: 3 replicas need 1 CPU each, and Ray has 2 CPU on 1 node, with "
            "room for 2. Lower num_gpus, num_cpus or min_replicas",
        ),
    ],
)
def test_what_the_nodes_can_not_hold_is_refused_at_once_unless_more_may_join(
    args: AppArgs, nodes: tuple[dict[str, float], ...], sentence: str
) -> None:
    settings = Settings(model_device="cpu")
    catalog = find_checkpoints(settings)
    with pytest.raises(SettingsError) as refused:
        plan_stages(args, settings, catalog, Cluster(nodes))
    assert str(refused.value).startswith(sentence)
    plan = plan_stages(args, settings, catalog, Cluster(nodes, may_grow=True))
    assert find_shortage(plan.demands, nodes) is not None


def test_what_the_nodes_hold_is_planned() -> None:
    settings = Settings(model_device="auto")
    cluster = Cluster((MACHINE, {"CPU": 8.0, "GPU": 1.0}))
    plan = plan_stages(ONE_GPU_CONFIG, settings, find_checkpoints(settings), cluster)
    assert plan.device == "cuda"
    assert [(demand.deployment, demand.count) for demand in plan.demands] == [
        ("BaseAndRefiner", 1),
        ("Ingress", 2),
    ]


@pytest.mark.parametrize(
    ("given", "cpus", "replicas"),
    [
        ({}, 1, (1, 1)),
        ({}, 2, (2, 2)),
        ({}, 64, (2, 2)),
        ({"num_cpus": 0.5}, 2, (2, 2)),
        ({"max_replicas": 4}, 8, (2, 4)),
        ({"max_replicas": 1}, 8, (1, 1)),
        ({"max_replicas": 4}, 1, (1, 4)),
        ({"min_replicas": 1}, 8, (1, 1)),
        ({"min_replicas": 3}, 1, (3, 3)),
    ],
)
def test_the_ingress_has_two_replicas_where_there_are_two_cpus(
    given: dict[str, Any], cpus: float, replicas: tuple[int, int]
) -> None:
    scale = ingress_scale(AppArgs.model_validate({"ingress": given}), cpus)
    assert (scale.min_replicas, scale.effective_max_replicas) == replicas
