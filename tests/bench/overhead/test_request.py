"""What the Server-Timing header of an answer is read as."""

from serve_app.bench.overhead.request import read_laps


def test_a_name_that_comes_again_is_added_up() -> None:
    header = "validate;dur=1.50, queue;dur=0.25, base;dur=2.00, queue;dur=0.50"
    assert read_laps(header) == {"validate": 1.5, "queue": 0.75, "base": 2.0}
    assert read_laps("") == {}
