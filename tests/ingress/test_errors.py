import json
import logging
from typing import Any

import pytest
from starlette.responses import Response

from serve_app.core import errors
from serve_app.core.replica_errors import ReplicasExhausted
from serve_app.core.service.convictions import image_kills_replica
from serve_app.core.service.job_errors import JobFailed
from serve_app.ingress import http_errors
from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.errors import (
    MAX_DETAILS,
    STATUSES,
    error_response,
    respond,
    respond_to_exception,
    shorten,
)
from serve_app.ingress.native.door import NATIVE
from serve_app.ingress.openai.door import OPENAI


def state() -> dict[str, Any]:
    return {"door": NATIVE, "request_id": "id-7"}


def error_in(response: Response) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(bytes(response.body))["error"]
    return error


class NewError(errors.OutOfMemory):
    """An error that came after the table."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NewError("no room"), 503, "OUT_OF_MEMORY"),
        (errors.CallerError("no"), 400, "VALIDATION_ERROR"),
        (errors.ServiceError("busy"), 503, "OVERLOADED"),
        (errors.LedgerAway("away"), 503, "LEDGER_UNAVAILABLE"),
        (errors.LedgerDamaged("damaged"), 503, "LEDGER_UNAVAILABLE"),
        (errors.OperatorError("broken"), 500, "INTERNAL"),
    ],
)
def test_an_error_without_a_status_has_that_of_its_base_class(
    error: Exception, status: int, code: str
) -> None:
    request_state = state()
    response = respond_to_exception(error, request_state, 0)
    assert (response.status_code, error_in(response)["code"]) == (status, code)
    assert request_state["error_code"] == code


@pytest.mark.parametrize("module", [errors, http_errors])
def test_every_named_error_but_the_operators_has_a_status(module: Any) -> None:
    named = [kind for kind in vars(module).values() if isinstance(kind, type)]
    for kind in named:
        is_ours = issubclass(kind, errors.AuraError) and kind is not errors.AuraError
        if is_ours and not issubclass(kind, errors.OperatorError):
            assert any(base in STATUSES for base in kind.__mro__), kind


@pytest.mark.parametrize("kind", [kind for kind in STATUSES if kind is not JobFailed])
def test_a_job_that_failed_has_the_status_of_its_own_error(kind: type[errors.AuraError]) -> None:
    failed = error_response(JobFailed(kind.code, "no"), 0)
    assert (failed.status, failed.code) == (STATUSES[kind], kind.code)


def test_a_job_that_failed_for_an_unknown_reason_tells_nothing_of_it() -> None:
    failed = error_response(JobFailed("WEIGHTS_NOT_FINITE", "/models/secret is damaged"), 0)
    assert (failed.status, failed.code) == (500, "INTERNAL")
    assert "secret" not in failed.message


@pytest.mark.parametrize("later", [False, True])  # from the job itself, or from the ledger
def test_an_image_that_kills_replicas_is_the_caller_s_fault_and_asks_for_no_retry(
    *, later: bool
) -> None:
    error: errors.AuraError = image_kills_replica()
    if later:
        error = JobFailed(error.code, str(error))
    response = respond_to_exception(error, state(), 0)
    assert (response.status_code, error_in(response)["code"]) == (422, "IMAGE_KILLS_REPLICA")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("later", [False, True])  # from the job itself, or from the ledger
def test_an_image_with_which_too_many_replicas_were_lost_asks_for_no_retry(*, later: bool) -> None:
    error: errors.AuraError = ReplicasExhausted("5 replicas were lost")
    if later:
        error = JobFailed(error.code, str(error), is_final=error_response(error, 0).is_final)
    response = respond_to_exception(error, state(), 0)
    assert (response.status_code, error_in(response)["code"]) == (503, "REPLICA_LOST")
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    response = respond_to_exception(errors.ReplicaLost("a replica was lost"), state(), 0)
    assert "x-should-retry" not in response.headers


def test_a_caller_of_several_such_images_may_come_again_later() -> None:
    response = respond_to_exception(
        errors.RateLimited(12.2, "several of your images ended the process"), state(), 0
    )
    assert (response.status_code, error_in(response)["code"]) == (429, "RATE_LIMITED")
    assert response.headers["retry-after"] == "13"


@pytest.mark.parametrize("later", [False, True])  # told by the job itself, or by the ledger
@pytest.mark.parametrize("door", [NATIVE, OPENAI])
def test_a_numeric_fault_keeps_its_code_and_its_sentence_and_asks_for_no_retry(
    door: Door, caplog: pytest.LogCaptureFixture, *, later: bool
) -> None:
    fault = errors.NumericFault("the latents are not finite", remedy="Try a lower guidance")
    error = JobFailed(fault.code, str(fault)) if later else fault
    with caplog.at_level(logging.WARNING, "aura.ingress"):
        response = respond_to_exception(error, state() | {"door": door}, 0)
    answered = error_in(response)
    assert (response.status_code, answered["code"].upper()) == (500, "NUMERIC_FAULT")
    assert answered["message"] == "the latents are not finite. Try a lower guidance"
    assert response.headers["x-should-retry"] == "false"
    (record,) = caplog.records
    assert "id-7" in record.getMessage()
    assert "the latents are not finite" in record.getMessage()
    assert record.exc_info is None


def test_the_stack_of_an_internal_error_is_in_the_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "aura.ingress"):
        response = respond_to_exception(KeyError("/models/secret"), state(), 0)
    body = bytes(response.body).decode()
    assert "secret" not in body
    assert "KeyError" not in body
    assert "id-7" in caplog.text
    assert "/models/secret" in caplog.text


def test_a_refused_request_says_itself_when_to_come_back() -> None:
    refused = error_response(errors.Overloaded("full", retry_after=17), owed_seconds=5)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "17")
    draining = error_response(errors.Draining("bye"), owed_seconds=5.2)
    assert draining.headers["Retry-After"] == "6"


def test_a_repeated_text_is_cut_to_40_characters_a_word() -> None:
    assert shorten("got " + "9" * 40) == "got " + "9" * 40
    assert shorten("got " + "9" * 41 + " here") == "got " + "9" * 40 + "… here"
    assert len(shorten("a " * 100_000)) <= 301


def test_a_response_has_a_bounded_number_of_details() -> None:
    error = ErrorResponse(400, "VALIDATION_ERROR", "m", [("a", "b")] * 10_000)
    assert len(error_in(respond(error, state()))["details"]) == MAX_DETAILS
