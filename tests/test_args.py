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


@pytest.mark.parametrize(
    ("device", "told", "gpus"),
    [("cuda", None, 0.5), ("cpu", None, 0), ("cpu", 1, 1), ("cuda", 0, 0)],
)
def test_what_a_config_says_wins_over_the_share(
    device: str, told: float | None, gpus: float
) -> None:
    assert Scale(num_gpus=told).gpus_on(device, 0.5) == gpus
