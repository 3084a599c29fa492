"""How fast an image steps, against what was predicted."""

import pytest

from serve_app.core.service.pace import Pace


def test_nothing_is_known_before_a_step_was_taken() -> None:
    assert Pace().factor is None
    assert Pace().after(10.0, 1.0).factor is None
    assert Pace().since(10.0) == 0.0


def test_the_factor_is_how_many_times_as_long_as_predicted_the_steps_took() -> None:
    pace = Pace().after(10.0, 0.0).after(12.0, 1.0)
    assert pace.factor == pytest.approx(2.0)
    assert pace.since(12.5) == pytest.approx(0.5)


def test_a_slow_first_step_counts_only_while_there_is_no_other() -> None:
    pace = Pace().after(10.0, 0.0).after(19.0, 1.0)
    assert pace.factor == pytest.approx(9.0)
    assert pace.after(21.0, 2.0).after(23.0, 3.0).factor == pytest.approx(2.0)


def test_a_pace_follows_the_load() -> None:
    pace = Pace()
    for step in range(20):
        pace = pace.after(float(step), float(step))
    for step in range(8):
        pace = pace.after(19.0 + 3 * (step + 1), 20.0 + step)
    assert pace.factor == pytest.approx(3.0)


def test_a_pace_begins_anew_where_the_image_goes_back() -> None:
    pace = Pace().after(10.0, 0.0).after(11.0, 1.0).after(20.0, 0.5)
    assert pace.factor is None
    assert pace.after(21.0, 1.0).factor == pytest.approx(2.0)
