import pickle

import pytest

from serve_app.core import errors, replica_errors
from serve_app.core.errors import AuraError, InvalidRequest
from serve_app.core.service import job_errors
from serve_app.core.service.job_errors import JobFailed


def test_an_invalid_request_names_the_field_and_the_problem() -> None:
    error = InvalidRequest("steps", "must be 1 or more")
    assert str(error) == "steps must be 1 or more"
    assert (error.path, error.problem) == ("steps", "must be 1 or more")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in {**vars(errors), **vars(replica_errors), **vars(job_errors)}.values()
        if isinstance(kind, type) and issubclass(kind, AuraError)
    ],
)
def test_every_error_survives_pickling(kind: type[AuraError]) -> None:
    special: dict[type[AuraError], AuraError] = {
        InvalidRequest: InvalidRequest("steps", "bad"),
        errors.RateLimited: errors.RateLimited(1.5),
        JobFailed: JobFailed("OUT_OF_MEMORY", "no room"),
    }
    error = special.get(kind) or kind("a sentence")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)


def test_an_error_about_another_subject_keeps_its_class_and_problem() -> None:
    error = errors.ConfigsError("lacks unet", subject="/models/x", remedy="Download it")
    named = error.about("MODEL_CHECKPOINT_DIR=/models/x", remedy="Download it again")
    assert type(named) is errors.ConfigsError
    assert str(named) == "MODEL_CHECKPOINT_DIR=/models/x lacks unet. Download it again"
    assert str(error) == "/models/x lacks unet. Download it"
    assert error.about("it").remedy == "Download it"


def test_a_failed_job_repeats_the_job_s_own_code_and_message() -> None:
    failed = JobFailed("OUT_OF_MEMORY", "no room")
    assert (failed.code, str(failed)) == ("OUT_OF_MEMORY", "no room")


def test_an_unknown_model_is_answered_with_the_available_ones_and_never_repeated() -> None:
    error = errors.model_not_found("model", ["demo", "other"])
    assert str(error) == "model is unknown. Available: demo, other"
