"""What a cloud's failure becomes once calls of the same job may have cost something."""

import pytest

from serve_app.core.cloud_errors import CallCutOff, WastedCall, after_calls
from serve_app.core.errors import (
    AuraError,
    DeadlineExceeded,
    ModelUnavailable,
    Overloaded,
    SafetyBlock,
    UpstreamError,
)


@pytest.mark.parametrize(
    "failure",
    [
        UpstreamError("it is down"),
        DeadlineExceeded("too late"),
        Overloaded("busy", retry_after=7),
        ModelUnavailable("refused", subject="GEMINI_API_KEY", remedy="Get another"),
    ],
    ids=lambda failure: failure.code,
)
def test_a_failure_after_calls_is_final_and_says_the_same(failure: AuraError) -> None:
    final = after_calls(failure)
    assert (final.code, str(final)) == (failure.code, str(failure))
    assert (failure.is_final, final.is_final) == (False, True)


@pytest.mark.parametrize("failure", [WastedCall("words"), CallCutOff("late"), SafetyBlock("no")])
def test_a_failure_that_no_client_sends_again_stays_as_it_is(failure: AuraError) -> None:
    assert after_calls(failure) is failure
