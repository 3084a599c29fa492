import json
import logging

import pytest

from serve_app.core import errors
from serve_app.ingress.errors import (
    MAX_DETAILS,
    TABLE,
    ErrorResponse,
    respond,
    respond_to_exception,
    retry_after,
    shown,
)

STATE = {"path": "/generate", "request_id": "id-7"}


class NotYetNamed(errors.OutOfMemory):
    """An error that came after the table."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotYetNamed("no room"), 503, "OUT_OF_MEMORY"),
        (errors.CallerError("no"), 400, "VALIDATION_ERROR"),
        (errors.ServiceError("busy"), 503, "OVERLOADED"),
    ],
)
def test_an_error_that_is_not_in_the_table_is_told_as_its_nearest_kin(
    error: Exception, status: int, code: str
) -> None:
    state = dict(STATE)
    told = respond_to_exception(error, state, 0)
    assert (told.status_code, json.loads(told.body)["error"]["code"]) == (status, code)
    assert state["error_code"] == code


def test_every_named_error_has_a_place_but_the_operators() -> None:
    named = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in named:
        if kind is not errors.AuraError and not issubclass(kind, errors.OperatorError):
            assert any(k in TABLE for k in kind.__mro__), kind


def test_the_stack_of_a_fault_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "aura.ingress"):
        told = respond_to_exception(KeyError("/models/secret"), dict(STATE), 0)
    assert b"secret" not in told.body
    assert "KeyError" not in told.body.decode()
    assert "id-7" in caplog.text
    assert "/models/secret" in caplog.text


@pytest.mark.parametrize(
    ("owed", "seconds"),
    [(0, 1), (0.2, 1), (12.3, 13), (119.5, 120), (9000, 120), (float("inf"), 120)],
)
def test_a_client_is_asked_to_wait_as_long_as_the_owed_work_within_bounds(
    owed: float, seconds: int
) -> None:
    assert retry_after(owed) == seconds


def test_what_a_caller_sent_is_told_back_at_40_characters_a_word_at_most() -> None:
    assert shown("got " + "9" * 40) == "got " + "9" * 40
    assert shown("got " + "9" * 41 + " here") == "got " + "9" * 40 + "… here"
    assert len(shown("a " * 100_000)) <= 301


def test_an_answer_has_a_bounded_number_of_details() -> None:
    refusal = ErrorResponse(400, "VALIDATION_ERROR", "m", [("a", "b")] * 10_000)
    told = respond(refusal, dict(STATE))
    assert len(json.loads(told.body)["error"]["details"]) == MAX_DETAILS
