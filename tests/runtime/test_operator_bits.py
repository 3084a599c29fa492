"""Which operators change a row's bits with the number of rows, on modules with known answers."""

import pytest
import torch
from torch.nn import functional

from serve_app.runtime.operator_bits import OperatorBits, OperatorCalls

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_each_kind_of_operator_is_counted_and_compared_in_fewer_rows() -> None:
    bits = OperatorBits(4, (1, 2))
    with bits:
        functional.silu(X)
        functional.silu(X)
        functional.group_norm(X, 1)
        functional.linear(X[:, :, 0, 0], torch.eye(3))
        functional.linear(X, torch.eye(8))
        functional.conv2d(X, torch.ones(2, 3, 1, 1))
        functional.conv2d(X, torch.ones(2, 3, 3, 3), padding=1)
        functional.scaled_dot_product_attention(X, X, X)
    assert {name: operator.calls for name, operator in bits.operators.items()} == {
        "SiLU": 2,
        "group norm": 1,
        "linear, one line a row": 1,
        "linear, many lines a row": 1,
        "convolution 1x1": 1,
        "convolution 3x3": 1,
        "attention": 1,
    }
    assert bits.operators["SiLU"] == OperatorCalls(2, {1: 0, 2: 0})


def test_an_operator_whose_result_depends_on_the_other_rows_is_found() -> None:
    """Dropout draws for the whole batch."""
    bits = OperatorBits(4, (2,))
    with bits:
        functional.scaled_dot_product_attention(X, X, X, dropout_p=0.5)
    assert bits.operators["attention"].changed == {2: 1}


@pytest.mark.parametrize("rows", [1, 8])
def test_calls_on_other_numbers_of_rows_are_left_out(rows: int) -> None:
    bits = OperatorBits(rows, (2,))
    with bits:
        functional.silu(X)
    assert not bits.operators
