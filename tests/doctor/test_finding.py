"""A finding is one line, and a problem comes with its fix."""

import pytest

from serve_app.core.errors import CheckpointError
from serve_app.doctor.finding import Finding, Verdict, fail, fine, problem_of, warn


def test_a_problem_needs_a_fix_and_nothing_else_has_one() -> None:
    with pytest.raises(ValueError, match="disk: WARN and FAIL need a fix, OK and SKIP have none"):
        Finding("disk", Verdict.FAIL, "full")
    with pytest.raises(ValueError, match="disk: WARN and FAIL need a fix, OK and SKIP have none"):
        Finding("disk", Verdict.OK, "empty", "df")


@pytest.mark.parametrize(("message", "fix"), [("full\nup", "df"), ("full", "df\nrm")])
def test_a_finding_is_one_line(message: str, fix: str) -> None:
    with pytest.raises(ValueError, match="must be one line"):
        fail("disk", message, fix)


@pytest.mark.parametrize(
    ("fix", "fix_in_shell"),
    [
        ("MODEL_DEVICE=cpu", "export MODEL_DEVICE=cpu"),
        ("MODEL_DEVICE=", "unset MODEL_DEVICE"),
        ("MODEL_PRECISION=fp16", "MODEL_PRECISION=fp16"),
        ("MODEL_DEVICE=cpu make serve", "MODEL_DEVICE=cpu make serve"),
    ],
)
def test_an_exported_variable_is_fixed_in_the_shell(fix: str, fix_in_shell: str) -> None:
    assert warn("device", "slow", fix).for_environment({"MODEL_DEVICE"}).fix == fix_in_shell
    assert fine("device", "fast").for_environment({"MODEL_DEVICE"}) == fine("device", "fast")


def test_a_line_for_the_env_file_differs_from_a_command() -> None:
    assert warn("device", "slow", "MODEL_DEVICE=cpu").is_for_env_file
    assert not warn("device", "slow", "MODEL_DEVICE=cpu make serve").is_for_env_file
    assert not warn("device", "slow", "export MODEL_DEVICE=cpu").is_for_env_file


def test_the_problem_of_an_error_is_its_sentence_without_the_remedy() -> None:
    error = CheckpointError("lacks\n  unet", subject="./fox", remedy="Download it again")
    assert problem_of(error) == "./fox lacks unet"
    assert problem_of(CheckpointError("no checkpoint")) == "no checkpoint"
