"""Errors of start-up keep their fields through a text, and the first cause is found."""

import traceback

import pytest

from serve_app.core.errors import CheckpointError, DeviceError, OperatorError
from serve_app.core.startup_error import (
    StartupFailure,
    read_startup_error,
    startup_errors,
    startup_failure,
)


def text_of(error: Exception) -> str:
    """Return what Serve says of a replica whose constructor raised an error."""
    try:
        with startup_errors("the ledger"):
            raise error
    except RuntimeError:
        return f"Deploying app 'aura' failed with exception:\n{traceback.format_exc()}\nagain"


def test_an_error_keeps_its_fields_through_a_traceback() -> None:
    error = read_startup_error(
        text_of(
            CheckpointError(
                "lacks unet: 2 > 1\nor so", subject="MODEL_CHECKPOINT_DIR=/a", remedy="Get it: x"
            )
        )
    )
    assert isinstance(error, OperatorError)
    assert (error.problem, error.subject) == ("lacks unet: 2 > 1\nor so", "MODEL_CHECKPOINT_DIR=/a")
    assert (error.remedy, error.code) == ("Get it: x", CheckpointError.code)


def test_the_text_begins_with_the_sentence_for_people() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^no GPU\. Set MODEL_DEVICE=cpu\n"),
        startup_errors("a replica"),
    ):
        raise DeviceError("no GPU", remedy="Set MODEL_DEVICE=cpu")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NotImplementedError("Cannot copy out of meta tensor\nmore"), "Cannot copy out of meta te"),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "could not start: AssertionError"),
    ],
)
def test_an_error_without_a_name_becomes_its_class_and_first_line(
    error: Exception, sentence: str
) -> None:
    read = read_startup_error(text_of(error))
    assert isinstance(read, StartupFailure)
    assert str(read).startswith("the ledger could not start: ")
    assert sentence in str(read)
    assert "more" not in str(read)


def test_a_text_without_an_error_or_with_half_of_one_has_none() -> None:
    assert read_startup_error("Traceback:\n  KeyError: 'x'") is None
    assert read_startup_error('aura-error: {"code": "INTER') is None


def test_the_cause_is_the_error_that_any_part_carries() -> None:
    found = startup_failure(
        [
            ("Refiner", "The deployment failed to start 3 times in a row."),
            ("BaseGenerator", text_of(DeviceError("no GPU"))),
            ("aura", "Failed to update the deployments ['BaseGenerator', 'Refiner']."),
        ]
    )
    assert isinstance(found, OperatorError)
    assert str(found) == "no GPU"


def test_without_one_it_is_what_the_first_part_says_last() -> None:
    found = startup_failure(
        [
            ("Ledger", ""),
            (
                "Refiner",
                "The deployment failed to start.\n  Worker exit detail: killed by SIGKILL. ",
            ),
            ("aura", "Failed to update the deployments ['Refiner']."),
        ]
    )
    assert isinstance(found, StartupFailure)
    assert str(found) == "Refiner could not start: Worker exit detail: killed by SIGKILL."
    assert str(startup_failure([])) == "the application could not start: no reason is known"
