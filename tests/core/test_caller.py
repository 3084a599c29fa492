import pytest

from serve_app.core.caller import Caller


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_positive_and_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        Caller("key:1", weight)


def test_a_caller_has_an_equal_share_unless_somebody_says_otherwise() -> None:
    assert Caller("key:1").weight == 1.0
