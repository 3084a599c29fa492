"""Faults as prompts name them."""

import pytest

from serve_app.testing.fault import Fault, FaultKind, parse_fault


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("a fox", None),
        ("a default:kill@3", None),
        ("a fox fault:kill@17", Fault(FaultKind.KILL, 17)),
        ("fault:slow@3x2.5, a fox", Fault(FaultKind.SLOW, 3, 2.5)),
        ("fault:hang@12*1", Fault(FaultKind.HANG, 12, times=1)),
        ("fault:leak@0x8*2", Fault(FaultKind.LEAK, 0, 8.0, 2)),
    ],
)
def test_a_prompt_names_a_fault_its_step_its_size_and_how_often(
    prompt: str, fault: Fault | None
) -> None:
    assert parse_fault(prompt) == fault


def test_a_fault_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="explode"):
        parse_fault("fault:explode@3")
