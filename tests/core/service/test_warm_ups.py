"""How far the replicas that start have come."""

import pytest

from serve_app.core.service.warm_ups import WarmUp, WarmUps


def test_of_each_model_the_furthest_replica_counts() -> None:
    warm_ups = WarmUps()
    warm_ups.update("a", WarmUp("sdxl", 1, 8), 0.0)
    warm_ups.update("b", WarmUp("sdxl", 3, 8), 1.0)
    warm_ups.update("c", WarmUp("sdxl", 2, 8), 2.0)
    warm_ups.update("c", WarmUp("refiner", 0, 4), 2.0)
    assert warm_ups.furthest(3.0) == (WarmUp("sdxl", 3, 8), WarmUp("refiner", 0, 4))


def test_what_is_compiled_is_not_listed() -> None:
    warm_ups = WarmUps()
    warm_ups.update("a", WarmUp("sdxl", 7, 8), 0.0)
    warm_ups.update("a", WarmUp("sdxl", 8, 8), 1.0)
    assert warm_ups.furthest(1.0) == ()


def test_a_replica_that_says_nothing_for_long_is_forgotten() -> None:
    warm_ups = WarmUps()
    warm_ups.update("a", WarmUp("sdxl", 7, 8), 0.0)
    warm_ups.update("b", WarmUp("sdxl", 5, 8), 100.0)
    assert warm_ups.furthest(1199.0) == (WarmUp("sdxl", 7, 8),)
    assert warm_ups.furthest(1201.0) == (WarmUp("sdxl", 5, 8),)


@pytest.mark.parametrize("done", [-1, 9])
def test_no_more_can_be_done_than_there_is(done: int) -> None:
    with pytest.raises(ValueError, match="no more"):
        WarmUp("sdxl", done, 8)
