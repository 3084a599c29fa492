"""How many GPUs replicas ask for, from the args of a config alone."""

import pytest

from serve_app.args import AppArgs, Scale

ONE = AppArgs()
MANY = AppArgs(base=Scale(min_replicas=2, max_replicas=8))
PART = AppArgs(base=Scale(num_gpus=0.25), refiner=Scale(min_replicas=2))
TOLD = AppArgs(base=Scale(num_gpus=1), refiner=Scale(min_replicas=2))


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
    args = AppArgs(both=Scale(min_replicas=2))
    assert args.scales(refiner=True) == args.scales(refiner=False) == (Scale(min_replicas=2),)
    assert args.gpu_share(2, refiner=True) == 1
    assert args.gpu_share(1, refiner=True) == 1 / 2


@pytest.mark.parametrize("section", ["base", "refiner"])
def test_both_takes_the_place_of_base_and_refiner(section: str) -> None:
    with pytest.raises(ValueError, match=r"both runs base and refiner .* remove those, or both"):
        AppArgs.model_validate({"both": {}, section: {"min_replicas": 1}})


SHIPPED = AppArgs.model_validate({"base": {"min_replicas": 1}, "refiner": {"min_replicas": 1}})
TOGETHER = AppArgs(both=Scale())
HALF = Scale(num_gpus=0.5)


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
        (AppArgs(both=HALF), "cuda", 1, True, AppArgs(both=HALF)),
        (MANY, "cuda", 1, True, MANY),
        (PART, "cuda", 1, True, PART),
        (AppArgs(both=HALF), "cpu", 4, True, AppArgs(both=HALF)),
    ],
)
def test_stages_take_turns_on_the_only_card_unless_their_sections_say_how_else(
    args: AppArgs, device: str, gpus: int, refiner: bool, in_force: AppArgs
) -> None:
    assert args.settled(device, gpus, refiner=refiner) == in_force


def test_what_else_a_config_says_stays_when_stages_take_turns() -> None:
    args = AppArgs(ingress=Scale(min_replicas=2), settings={"IMAGE_COUNT": "1"})
    settled = args.settled("cuda", 1, refiner=True)
    assert settled == AppArgs(ingress=args.ingress, both=Scale(), settings=args.settings)


@pytest.mark.parametrize(
    ("device", "told", "gpus"),
    [("cuda", None, 0.5), ("cpu", None, 0), ("cpu", 1, 1), ("cuda", 0, 0)],
)
def test_what_a_config_says_wins_over_the_share(
    device: str, told: float | None, gpus: float
) -> None:
    assert Scale(num_gpus=told).gpus_on(device, 0.5) == gpus
