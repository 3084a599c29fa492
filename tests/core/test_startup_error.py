"""Errors of start-up keep their fields through a text."""

import traceback

import pytest

from serve_app.core.errors import CheckpointError, DeviceError
from serve_app.core.startup_error import read_startup_error, startup_errors


def test_an_error_keeps_its_fields_through_a_traceback() -> None:
    try:
        with startup_errors():
            raise CheckpointError(
                "lacks unet: 2 > 1\nor so", subject="MODEL_CHECKPOINT_DIR=/a", remedy="Get it: x"
            )
    except RuntimeError:
        text = f"Deploying app 'aura' failed with exception:\n{traceback.format_exc()}\nagain"
    error = read_startup_error(text)
    assert error is not None
    assert (error.problem, error.subject) == ("lacks unet: 2 > 1\nor so", "MODEL_CHECKPOINT_DIR=/a")
    assert (error.remedy, error.code) == ("Get it: x", CheckpointError.code)


def test_the_text_begins_with_the_sentence_for_people() -> None:
    with pytest.raises(RuntimeError, match=r"^no GPU\. Set MODEL_DEVICE=cpu\n"), startup_errors():
        raise DeviceError("no GPU", remedy="Set MODEL_DEVICE=cpu")


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(KeyError), startup_errors():
        raise KeyError("x")
    assert read_startup_error("Traceback:\n  KeyError: 'x'") is None
    assert read_startup_error('aura-error: {"code": "INTER') is None
