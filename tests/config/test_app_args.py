"""The typed args of a config: which combinations are refused."""

from typing import Any

import pytest

from serve_app.config.app_args import AppArgs


@pytest.mark.parametrize("section", ["base", "refiner"])
def test_combined_takes_the_place_of_base_and_refiner(section: str) -> None:
    with pytest.raises(
        ValueError, match=r"combined runs base and refiner .* remove those, or combined"
    ):
        AppArgs.model_validate({"combined": {}, section: {"min_replicas": 1}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"base": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"combined": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"ingress": {"min_replicas": 0, "max_replicas": 2}}, "the refiner alone may go to 0"),
        ({"refiner": {"min_replicas": 0}}, "min_replicas: 0 needs a max_replicas"),
    ],
)
def test_only_the_refiner_may_scale_to_zero_and_not_for_ever(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AppArgs.model_validate(data)
