"""Suggestions for misspelt names: how near is near enough."""

from serve_app.core.suggest import NEARLY_EQUAL, suggest

NAMES = ["MODEL_DEVICE", "MODEL_PRECISION", "BACKEND_PORT"]


def test_the_most_similar_name_is_suggested() -> None:
    assert suggest("MODEL_DEVISE", NAMES) == "MODEL_DEVICE"
    assert suggest("MODEL_PRECIS", NAMES) == "MODEL_PRECISION"


def test_nothing_is_suggested_for_a_name_unlike_all() -> None:
    assert suggest("COLOUR", NAMES) is None
    assert suggest("MODEL_DEVICE", []) is None


def test_a_name_that_may_be_another_programs_must_be_nearly_equal() -> None:
    assert suggest("BACKEND_POST", NAMES, similarity=NEARLY_EQUAL) == "BACKEND_PORT"
    assert suggest("BACKEND_URL", NAMES) == "BACKEND_PORT"
    assert suggest("BACKEND_URL", NAMES, similarity=NEARLY_EQUAL) is None
