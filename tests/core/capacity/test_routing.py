"""Where an image goes, by what replicas have to do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.capacity.routing import KeyLoad, ReplicaLoad, rank_replicas

SQUARE, WIDE = (128, 128), (96, 168)


def home(id: str, **crowds: tuple[int, int]) -> ReplicaLoad:
    shapes = {"square": SQUARE, "wide": WIDE}
    return ReplicaLoad(
        id, 4, {shapes[name]: KeyLoad(*two, step_seconds=0.1) for name, two in crowds.items()}
    )


def ranked(
    homes: list[ReplicaLoad],
    shape: tuple[int, int],
    steps: int,
    chosen: dict[str, int] | None = None,
) -> list[str]:
    return rank_replicas([one.with_key(shape, 0.1) for one in homes], chosen or {}, shape, steps)


def test_a_replica_is_done_when_its_batches_are_and_not_before_its_longest_image() -> None:
    assert home("a").seconds == 0
    assert home("a", square=(30, 30)).seconds == pytest.approx(3.0)  # alone in its batch
    assert home("a", square=(120, 30)).seconds == pytest.approx(3.0)  # four of a kind
    assert home("a", square=(240, 30)).seconds == pytest.approx(6.0)
    assert home("a", square=(30, 30), wide=(20, 20)).seconds == pytest.approx(5.0)


def test_a_free_place_beside_its_like_costs_nothing() -> None:
    assert home("a", square=(30, 30)).marginal_seconds(SQUARE, 30) == pytest.approx(0.0)
    assert home("a", square=(30, 30)).marginal_seconds(SQUARE, 50) == pytest.approx(2.0)
    assert home("a", square=(120, 30)).marginal_seconds(SQUARE, 40) == pytest.approx(1.0)
    assert home("a", square=(30, 30)).with_key(WIDE, 0.2).marginal_seconds(
        WIDE, 30
    ) == pytest.approx(6.0)


def test_an_image_goes_where_it_is_done_soonest_while_somebody_is_idle() -> None:
    idle, beside = home("idle"), home("beside", square=(50, 30))
    assert ranked([idle, beside], SQUARE, 30) == ["idle", "beside"]  # both in 3 s
    slower = home("idle").with_key(SQUARE, 0.105)
    assert rank_replicas([slower, beside], {}, SQUARE, 30) == ["idle", "beside"]
    slower = home("idle").with_key(SQUARE, 0.2)
    assert rank_replicas([slower, beside], {}, SQUARE, 30) == ["beside", "idle"]
    assert ranked([idle, beside], WIDE, 30) == ["idle", "beside"]
    full = home("beside", square=(120, 30))
    assert ranked([idle, full], SQUARE, 30) == ["idle", "beside"]


def test_where_nobody_is_idle_a_free_place_is_worth_a_longer_way() -> None:
    short, like = home("short", wide=(20, 20)), home("like", square=(60, 60))
    assert ranked([short, like], SQUARE, 30) == ["like", "short"]
    assert ranked([short, like, home("none")], SQUARE, 30)[0] == "none"


def test_of_equals_the_one_longest_not_chosen() -> None:
    homes = [home("a"), home("b"), home("c")]
    assert ranked(homes, SQUARE, 4, {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


@given(st.integers(1, 500), st.integers(1, 150), st.integers(1, 150))
def test_one_more_never_makes_a_replica_sooner_done(steps: int, longest: int, more: int) -> None:
    there = home("a", square=(max(steps, longest), longest))
    assert there.marginal_seconds(SQUARE, more) >= 0
    assert there.with_key(WIDE, 0.1).marginal_seconds(WIDE, more) == pytest.approx(more * 0.1)


def test_a_replica_that_must_load_the_model_first_is_no_better_than_the_wait() -> None:
    loads = replace(home("idle"), load_seconds=20.0)
    assert ranked([loads, home("busy", square=(700, 150))], SQUARE, 30) == ["busy", "idle"]
    assert ranked([loads, home("busy", square=(1200, 150))], SQUARE, 30) == ["idle", "busy"]
