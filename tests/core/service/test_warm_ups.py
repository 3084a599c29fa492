"""How far the replicas that start have come."""

import pytest

from serve_app.core.service.warm_ups import WarmUp, WarmUps


def test_of_each_model_the_newest_report_counts() -> None:
    """The replica that was furthest may have died."""
    warm_ups = WarmUps()
    warm_ups.update("a", WarmUp("sdxl", 7, 8), 0.0)
    warm_ups.update("b", WarmUp("sdxl", 0, 8), 1.0)
    warm_ups.update("b", WarmUp("refiner", 0, 4), 1.0)
    assert set(warm_ups.newest(1.0)) == {WarmUp("sdxl", 0, 8), WarmUp("refiner", 0, 4)}
    warm_ups.update("a", WarmUp("sdxl", 7, 8), 2.0)
    assert set(warm_ups.newest(2.0)) == {WarmUp("sdxl", 7, 8), WarmUp("refiner", 0, 4)}


def test_a_report_that_comes_late_takes_nothing_back() -> None:
    warm_ups = WarmUps()
    for done in (0, 2, 1):
        warm_ups.update("a", WarmUp("sdxl", done, 3), 0.0)
    assert warm_ups.newest(0.0) == (WarmUp("sdxl", 2, 3),)
    for done in (3, 2):
        warm_ups.update("a", WarmUp("sdxl", done, 3), 0.0)
    assert warm_ups.newest(0.0) == ()


def test_a_replica_that_says_nothing_for_long_is_forgotten() -> None:
    warm_ups = WarmUps()
    warm_ups.update("a", WarmUp("sdxl", 7, 8), 0.0)
    assert warm_ups.newest(1199.0) == (WarmUp("sdxl", 7, 8),)
    assert warm_ups.newest(1201.0) == ()


@pytest.mark.parametrize("done", [-1, 9])
def test_no_more_can_be_done_than_there_is(done: int) -> None:
    with pytest.raises(ValueError, match="no more"):
        WarmUp("sdxl", done, 8)
