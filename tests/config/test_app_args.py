"""The typed args of a config: which combinations are refused."""

from typing import Any

import pytest

from serve_app.config.app_args import AppArgs, DeploymentScale


@pytest.mark.parametrize("section", ["base", "refiner"])
def test_combined_takes_the_place_of_base_and_refiner(section: str) -> None:
    with pytest.raises(
        ValueError, match=r"combined runs base and refiner .* remove those, or combined"
    ):
        AppArgs.model_validate({"combined": {}, section: {"min_replicas": 1}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"base": {"min_replicas": 0, "max_replicas": 2}}, "only the refiner may have 0"),
        ({"combined": {"min_replicas": 0, "max_replicas": 2}}, "only the refiner may have 0"),
        ({"ingress": {"min_replicas": 0, "max_replicas": 2}}, "only the refiner may have 0"),
        ({"refiner": {"min_replicas": 0}}, "min_replicas: 0 needs a max_replicas"),
    ],
)
def test_only_the_refiner_may_scale_to_zero_and_not_for_ever(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AppArgs.model_validate(data)


def test_both_is_the_old_name_of_combined(caplog: pytest.LogCaptureFixture) -> None:
    assert AppArgs.model_validate({"both": {}}) == AppArgs(combined=DeploymentScale())
    (record,) = caplog.records
    assert "args: both is deprecated and will be removed: use combined" in record.getMessage()
