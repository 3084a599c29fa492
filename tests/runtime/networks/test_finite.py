"""Weights that are not finite are refused by name, in every dtype that files have."""

import pytest
import torch

from serve_app.core.errors import WeightsNotFinite
from serve_app.runtime.networks.finite import check_finite, is_finite

WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BAD = {"nan": "1 NaN", "inf": "1 infinite", "-inf": "1 infinite"}


@pytest.mark.parametrize("length", [1, 7, 64, 1001])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, length: int) -> None:
    for bad, count in BAD.items():
        for position in {0, length // 2, length - 1}:
            tensor = torch.zeros(length, dtype=dtype)
            tensor[position] = float(bad)
            with pytest.raises(WeightsNotFinite) as refused:
                check_finite(tensor, "conv_out.weight", "unet/model.safetensors")
            assert refused.value.problem == (
                "holds unet/model.safetensors, whose tensor conv_out.weight is damaged: "
                f"{count} of {length} values"
            )
            assert refused.value.code == "WEIGHTS_NOT_FINITE"


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_the_largest_finite_values_are_no_damage(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.full((3, 5), largest, dtype=dtype))
    assert is_finite(torch.full((3, 5), -largest, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_floats_are_checked(dtype: torch.dtype) -> None:
    tensor = torch.zeros(9)
    assert is_finite(tensor.to(dtype))
    tensor[4] = float("nan")
    assert not is_finite(tensor.to(dtype))


def test_a_tensor_without_values_or_of_integers_is_finite() -> None:
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.arange(77))
    check_finite(torch.zeros(3), "x", "y")


def test_values_of_both_kinds_are_counted() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])
    with pytest.raises(WeightsNotFinite, match=r"1 NaN and 2 infinite of 4 values$"):
        check_finite(tensor, "x", "y")
