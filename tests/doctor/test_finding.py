"""A finding is one line, and what is wrong comes with what mends it."""

import pytest

from serve_app.doctor.finding import Finding, Verdict, fail, fine, warn


def test_what_is_wrong_needs_a_mend_and_what_is_right_has_none() -> None:
    with pytest.raises(ValueError, match="disk: what is wrong, and nothing else"):
        Finding("disk", Verdict.FAIL, "full")
    with pytest.raises(ValueError, match="disk: what is wrong, and nothing else"):
        Finding("disk", Verdict.OK, "empty", "df")


def test_it_is_one_line() -> None:
    for said, mend in (("full\nup", "df"), ("full", "df\nrm")):
        with pytest.raises(ValueError, match="one line"):
            fail("disk", said, mend)


@pytest.mark.parametrize(
    ("mend", "aimed"),
    [
        ("MODEL_DEVICE=cpu", "export MODEL_DEVICE=cpu"),
        ("MODEL_DEVICE=", "unset MODEL_DEVICE"),
        ("MODEL_PRECISION=fp16", "MODEL_PRECISION=fp16"),
        ("MODEL_DEVICE=cpu make serve", "MODEL_DEVICE=cpu make serve"),
    ],
)
def test_a_variable_that_is_exported_is_mended_there(mend: str, aimed: str) -> None:
    assert warn("device", "slow", mend).for_environment({"MODEL_DEVICE"}).fix == aimed
    assert fine("device", "fast").for_environment({"MODEL_DEVICE"}) == fine("device", "fast")


def test_a_line_for_the_env_file_is_told_from_a_command() -> None:
    assert warn("device", "slow", "MODEL_DEVICE=cpu").is_for_env_file
    assert not warn("device", "slow", "MODEL_DEVICE=cpu make serve").is_for_env_file
    assert not warn("device", "slow", "export MODEL_DEVICE=cpu").is_for_env_file
