"""Where an image goes, by what replicas have to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.homes import Crowd, Home, rank_homes

SQUARE, WIDE = (128, 128), (96, 168)


def home(id: str, **crowds: tuple[int, int]) -> Home:
    shapes = {"square": SQUARE, "wide": WIDE}
    return Home(id, 4, {shapes[name]: Crowd(*two, turn=0.1) for name, two in crowds.items()})


def test_a_replica_is_done_when_its_batches_are_and_not_before_its_longest_image() -> None:
    assert home("a").seconds == 0
    assert home("a", square=(30, 30)).seconds == pytest.approx(3.0)  # alone in its batch
    assert home("a", square=(120, 30)).seconds == pytest.approx(3.0)  # four of a kind
    assert home("a", square=(240, 30)).seconds == pytest.approx(6.0)
    assert home("a", square=(30, 30), wide=(20, 20)).seconds == pytest.approx(5.0)


def test_a_free_place_beside_its_like_costs_nothing() -> None:
    assert home("a", square=(30, 30)).more(SQUARE, 30, 0.1) == pytest.approx(0.0)
    assert home("a", square=(30, 30)).more(SQUARE, 50, 0.1) == pytest.approx(2.0)
    assert home("a", square=(120, 30)).more(SQUARE, 40, 0.1) == pytest.approx(1.0)
    assert home("a", square=(30, 30)).more(WIDE, 30, 0.2) == pytest.approx(6.0)


def test_an_image_goes_where_it_is_done_soonest_while_somebody_is_idle() -> None:
    idle, beside = home("idle"), home("beside", square=(50, 30))
    assert rank_homes([idle, beside], {}, SQUARE, 30, 0.1) == ["beside", "idle"]  # both in 3 s
    assert rank_homes([idle, beside], {}, WIDE, 30, 0.1) == ["idle", "beside"]
    full = home("beside", square=(120, 30))
    assert rank_homes([idle, full], {}, SQUARE, 30, 0.1) == ["idle", "beside"]


def test_where_nobody_is_idle_a_free_place_is_worth_a_longer_way() -> None:
    short, like = home("short", wide=(20, 20)), home("like", square=(60, 60))
    assert rank_homes([short, like], {}, SQUARE, 30, 0.1) == ["like", "short"]
    assert rank_homes([short, like, home("none")], {}, SQUARE, 30, 0.1)[0] == "none"


def test_of_equals_the_one_longest_not_chosen() -> None:
    homes = [home("a"), home("b"), home("c")]
    assert rank_homes(homes, {"a": 3, "b": 1, "c": 2}, SQUARE, 4, 0.1) == ["b", "c", "a"]


@given(st.integers(1, 500), st.integers(1, 150), st.integers(1, 150))
def test_one_more_never_makes_a_replica_sooner_done(steps: int, longest: int, more: int) -> None:
    there = home("a", square=(max(steps, longest), longest))
    assert there.more(SQUARE, more, 0.1) >= 0
    assert there.more(WIDE, more, 0.1) == pytest.approx(more * 0.1)
