"""How many GPUs replicas ask for, from the args of a config alone."""

from typing import Any

import pytest

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.core.errors import SettingsError

ONE = AppArgs()
MANY = AppArgs(base=DeploymentScale(min_replicas=2, max_replicas=8))
PART = AppArgs(base=DeploymentScale(num_gpus=0.25), refiner=DeploymentScale(min_replicas=2))
HALF = DeploymentScale(num_gpus=0.5)
TOLD = AppArgs(base=DeploymentScale(num_gpus=1), refiner=DeploymentScale(min_replicas=2))


@pytest.mark.parametrize(
    ("args", "gpus", "refiner", "share"),
    [
        (ONE, 2, True, 1),
        (ONE, 1, True, 1 / 2),
        (ONE, 1, False, 1),
        (ONE, 0, True, 1),  # GPU nodes may come later
        (MANY, 1, True, 1 / 3),
        (MANY, 2, True, 1 / 2),
        (MANY, 3, True, 1),
        (TOLD, 2, True, 1 / 2),  # one card is taken already
        (TOLD, 1, True, 1),
        (PART, 1, True, 0.37),  # of what base leaves of the card
        (PART, 1, False, 1),  # nobody is left to ask
    ],
)
def test_a_gpu_is_shared_where_there_are_fewer_than_replicas(
    args: AppArgs, gpus: int, refiner: bool, share: float
) -> None:
    assert args.gpu_share(gpus, refiner=refiner) == share


def test_one_deployment_for_both_stages_asks_for_a_card_of_its_own() -> None:
    args = AppArgs(combined=DeploymentScale(min_replicas=2))
    assert (
        args.scales(refiner=True)
        == args.scales(refiner=False)
        == (DeploymentScale(min_replicas=2),)
    )
    assert args.gpu_share(2, refiner=True) == 1
    assert args.gpu_share(1, refiner=True) == 1 / 2


@pytest.mark.parametrize("section", ["base", "refiner"])
def test_both_takes_the_place_of_base_and_refiner(section: str) -> None:
    with pytest.raises(
        ValueError, match=r"combined runs base and refiner .* remove those, or combined"
    ):
        AppArgs.model_validate({"combined": {}, section: {"min_replicas": 1}})


def test_a_stage_that_may_go_to_none_keeps_room_for_one() -> None:
    args = AppArgs(refiner=DeploymentScale(min_replicas=0, max_replicas=2))
    assert args.gpu_share(1, refiner=True) == 1 / 2
    assert args.gpu_share(2, refiner=True) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"base": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"combined": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"ingress": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"refiner": {"min_replicas": 0}}, "min_replicas: 0 needs a max_replicas"),
    ],
)
def test_the_refiner_alone_may_have_no_replica_and_not_for_ever(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AppArgs.model_validate(data)


def scaling(base: DeploymentScale, refiner: DeploymentScale) -> AppArgs:
    return AppArgs(base=base, refiner=refiner)


FEW = scaling(DeploymentScale(max_replicas=3), DeploymentScale(max_replicas=2))


@pytest.mark.parametrize(
    ("args", "total", "device", "refiner", "pool"),
    [
        (FEW, 4, "cuda", True, 4),
        (FEW, None, "cuda", True, None),
        (FEW, 4, "cpu", True, None),  # which asks for no GPU
        (FEW, 2, "cuda", False, 2),
        (scaling(DeploymentScale(max_replicas=9, num_gpus=0.5), HALF), 4, "cpu", True, 7),
        (
            scaling(DeploymentScale(max_replicas=9, num_gpus=2), DeploymentScale(num_gpus=2)),
            7,
            "cuda",
            True,
            2,
        ),
        (
            scaling(DeploymentScale(min_replicas=3), DeploymentScale(max_replicas=2)),
            4,
            "cuda",
            True,
            1,
        ),
        (
            scaling(
                DeploymentScale(max_replicas=2), DeploymentScale(min_replicas=0, max_replicas=2)
            ),
            2,
            "cuda",
            True,
            2,
        ),
        (AppArgs(combined=DeploymentScale(max_replicas=6)), 4, "cuda", True, 4),
        (scaling(DeploymentScale(min_replicas=3), DeploymentScale()), 4, "cuda", True, 0),
    ],
)
def test_gpus_are_shared_out_in_replicas_of_the_stages_that_scale(
    args: AppArgs, total: int | None, device: str, refiner: bool, pool: int | None
) -> None:
    assert args.max_total_replicas(total, device, 1, refiner=refiner) == pool


@pytest.mark.parametrize(
    ("args", "total", "said"),
    [
        (FEW, 1, "TOTAL_GPUS=1 has room for 1 replicas of 1 GPUs, and the stages need 2: set TOT"),
        (
            scaling(
                DeploymentScale(min_replicas=3), DeploymentScale(min_replicas=0, max_replicas=1)
            ),
            3,
            "need 4",
        ),
        (
            scaling(DeploymentScale(num_gpus=2), DeploymentScale(num_gpus=2)),
            3,
            "set TOTAL_GPUS=4, or lower min_repl",
        ),
        (
            scaling(DeploymentScale(num_gpus=1), HALF),
            4,
            "the same num_gpus, not 0.5 and 1: make them equal",
        ),
    ],
)
def test_gpus_that_are_too_few_or_can_not_be_shared_out_are_told(
    args: AppArgs, total: int, said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        args.max_total_replicas(total, "cuda", 1, refiner=True)
    assert refused.value.variable == "TOTAL_GPUS"


SHIPPED = AppArgs.model_validate({"base": {"min_replicas": 1}, "refiner": {"min_replicas": 1}})
TOGETHER = AppArgs(combined=DeploymentScale())


@pytest.mark.parametrize(
    ("args", "device", "gpus", "refiner", "in_force"),
    [
        (ONE, "cuda", 1, True, TOGETHER),
        (SHIPPED, "cuda", 1, True, TOGETHER),
        (SHIPPED, "cuda", 1, False, SHIPPED),
        (SHIPPED, "cuda", 2, True, SHIPPED),
        (SHIPPED, "cuda", 0, True, SHIPPED),  # GPU nodes may come later
        (SHIPPED, "cpu", 1, True, SHIPPED),
        (SHIPPED, "mps", 0, True, SHIPPED),
        (AppArgs(combined=HALF), "cuda", 1, True, AppArgs(combined=HALF)),
        (MANY, "cuda", 1, True, MANY),
        (PART, "cuda", 1, True, PART),
        (AppArgs(combined=HALF), "cpu", 4, True, AppArgs(combined=HALF)),
    ],
)
def test_stages_take_turns_on_the_only_card_unless_their_sections_say_how_else(
    args: AppArgs, device: str, gpus: int, refiner: bool, in_force: AppArgs
) -> None:
    assert args.with_defaults(device, gpus, refiner=refiner) == in_force


def test_what_else_a_config_says_stays_when_stages_take_turns() -> None:
    args = AppArgs(ingress=DeploymentScale(min_replicas=2), settings={"DEFAULT_IMAGE_COUNT": "1"})
    settled = args.with_defaults("cuda", 1, refiner=True)
    assert settled == AppArgs(
        ingress=args.ingress, combined=DeploymentScale(), settings=args.settings
    )


@pytest.mark.parametrize(
    ("device", "told", "gpus"),
    [("cuda", None, 0.5), ("cpu", None, 0), ("cpu", 1, 1), ("cuda", 0, 0)],
)
def test_what_a_config_says_wins_over_the_share(
    device: str, told: float | None, gpus: float
) -> None:
    assert DeploymentScale(num_gpus=told).gpus_on(device, 0.5) == gpus
