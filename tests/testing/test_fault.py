"""Faults as prompts name them."""

import pytest

from serve_app.testing.fault import Fault, FaultKind, parse_faults


@pytest.mark.parametrize(
    ("prompt", "faults"),
    [
        ("a fox", ()),
        ("a default:kill@3", ()),
        ("a fox fault:kill@17", (Fault(FaultKind.KILL, 17),)),
        ("fault:slow@3x2.5, a fox", (Fault(FaultKind.SLOW, 3, 2.5),)),
        ("fault:hang@12*1", (Fault(FaultKind.HANG, 12, times=1),)),
        (
            "fault:kill@8*1 fault:kill@16*1",
            (Fault(FaultKind.KILL, 8, times=1), Fault(FaultKind.KILL, 16, times=1)),
        ),
        ("fault:leak@0x8*2", (Fault(FaultKind.LEAK, 0, 8.0, 2),)),
    ],
)
def test_a_prompt_names_faults_their_step_size_and_how_often(
    prompt: str, faults: tuple[Fault, ...]
) -> None:
    assert parse_faults(prompt) == faults


def test_a_fault_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="explode"):
        parse_faults("fault:explode@3")
