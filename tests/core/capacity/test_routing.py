"""Which replica an image goes to, by what replicas have to do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.routing import (
    KeyLoad,
    ReplicaLoad,
    has_place,
    max_ongoing_images,
    max_places,
    rank_replicas,
)

SQUARE, WIDE = (128, 128), (96, 168)


def replica(id: str, **loads: tuple[int, int]) -> ReplicaLoad:
    sizes = {"square": SQUARE, "wide": WIDE}
    return ReplicaLoad(
        id, 4, {sizes[name]: KeyLoad(*two, step_seconds=0.1) for name, two in loads.items()}
    )


def rank(
    replicas: list[ReplicaLoad],
    key: tuple[int, int],
    steps: int,
    last_chosen: dict[str, int] | None = None,
) -> list[str]:
    loads = [replica.with_key(key, 0.1) for replica in replicas]
    return rank_replicas(loads, last_chosen or {}, key, steps)


def test_a_replica_is_done_with_its_batches_and_not_before_its_longest_image() -> None:
    assert replica("a").seconds == 0
    assert replica("a", square=(30, 30)).seconds == pytest.approx(3.0)  # alone in its batch
    assert replica("a", square=(120, 30)).seconds == pytest.approx(3.0)  # a full batch
    assert replica("a", square=(240, 30)).seconds == pytest.approx(6.0)
    assert replica("a", square=(30, 30), wide=(20, 20)).seconds == pytest.approx(5.0)


def test_a_free_place_in_a_batch_of_its_key_costs_nothing() -> None:
    assert replica("a", square=(30, 30)).marginal_seconds(SQUARE, 30) == pytest.approx(0.0)
    assert replica("a", square=(30, 30)).marginal_seconds(SQUARE, 50) == pytest.approx(2.0)
    assert replica("a", square=(120, 30)).marginal_seconds(SQUARE, 40) == pytest.approx(1.0)
    assert replica("a", square=(30, 30)).with_key(WIDE, 0.2).marginal_seconds(
        WIDE, 30
    ) == pytest.approx(6.0)


def test_an_image_goes_where_it_is_done_soonest_while_a_replica_is_idle() -> None:
    idle, beside = replica("idle"), replica("beside", square=(50, 30))
    assert rank([idle, beside], SQUARE, 30) == ["idle", "beside"]  # both in 3 s
    slower = replica("idle").with_key(SQUARE, 0.105)
    assert rank_replicas([slower, beside], {}, SQUARE, 30) == ["idle", "beside"]
    slower = replica("idle").with_key(SQUARE, 0.2)
    assert rank_replicas([slower, beside], {}, SQUARE, 30) == ["beside", "idle"]
    assert rank([idle, beside], WIDE, 30) == ["idle", "beside"]
    full = replica("beside", square=(120, 30))
    assert rank([idle, full], SQUARE, 30) == ["idle", "beside"]


def test_where_no_replica_is_idle_a_free_place_is_worth_a_longer_wait() -> None:
    short, like = replica("short", wide=(20, 20)), replica("like", square=(60, 60))
    assert rank([short, like], SQUARE, 30) == ["like", "short"]
    assert rank([short, like, replica("none")], SQUARE, 30)[0] == "none"


def test_among_equals_the_replica_chosen_least_recently_is_first() -> None:
    replicas = [replica("a"), replica("b"), replica("c")]
    assert rank(replicas, SQUARE, 4, {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


@given(st.integers(1, 500), st.integers(1, 150), st.integers(1, 150))
def test_one_more_image_never_makes_a_replica_finish_sooner(
    steps: int, longest: int, more: int
) -> None:
    load = replica("a", square=(max(steps, longest), longest))
    assert load.marginal_seconds(SQUARE, more) >= 0
    assert load.with_key(WIDE, 0.1).marginal_seconds(WIDE, more) == pytest.approx(more * 0.1)


def test_loading_a_model_counts_as_much_as_waiting() -> None:
    loads = replace(replica("idle"), model_load_seconds=20.0)
    assert rank([loads, replica("busy", square=(700, 150))], SQUARE, 30) == ["busy", "idle"]
    assert rank([loads, replica("busy", square=(1200, 150))], SQUARE, 30) == ["idle", "busy"]


A, B, C = Caller("a"), Caller("b"), Caller("c", 3.0)


@pytest.mark.parametrize(
    ("images", "caller", "expected"),
    [
        ({A: 11}, A, True),
        ({A: 12}, A, False),
        ({A: 12}, B, True),
        ({A: 12, B: 1}, B, True),  # its share of a batch of four is two
        ({A: 12, B: 2}, B, False),
        ({A: 12, B: 1}, A, False),
        ({A: 12, C: 2}, C, True),  # of weight 3: its share is three
        ({A: 12, C: 3}, C, False),
        ({A: 12, C: 1}, B, True),
        ({A: 12, C: 8, B: 3}, Caller("d"), True),
        ({A: 12, C: 8, B: 4}, Caller("d"), False),  # six batches
        ({C: 12}, Caller("c", 1.0), False),  # the same caller, though its weight has changed
    ],
)
def test_beyond_three_batches_a_caller_has_places_up_to_its_share_of_a_batch(
    images: dict[Caller, int], caller: Caller, expected: bool
) -> None:
    assert has_place(4, images, caller, same_key=4) is expected


@pytest.mark.parametrize(
    ("images", "caller", "expected"),
    [
        ({A: 5, B: 1}, A, True),  # half of the twelve places each
        ({A: 6, B: 1}, A, False),
        ({A: 6, B: 1}, B, True),
        ({A: 6, B: 0}, A, True),  # nobody else has anything there
        ({A: 2, C: 1}, A, True),  # of weight 3: three quarters of the places
        ({A: 3, C: 1}, A, False),
        ({A: 3, C: 8}, C, True),
    ],
)
def test_callers_share_the_places_of_three_batches_by_weight(
    images: dict[Caller, int], caller: Caller, expected: bool
) -> None:
    assert has_place(4, images, caller, same_key=4) is expected


@pytest.mark.parametrize(
    ("images", "same_key", "expected"),
    [
        ({A: 12, B: 3}, 3, True),
        ({C: 1, B: 3}, 3, True),  # though it has its share of three batches
        ({A: 12, B: 4}, 4, False),  # its batch is full
        ({A: 12, B: 7}, 3, True),  # the others only wait to be decoded, or have another key
        ({A: 12, B: 8}, 3, False),  # two batches
        ({A: 12, B: 3, C: 4}, 3, True),
        ({A: 12, B: 3, C: 5}, 3, False),  # the sixth batch is for those with less than a share
    ],
)
def test_a_caller_has_places_for_images_that_fill_up_a_batch_of_their_key(
    images: dict[Caller, int], same_key: int, expected: bool
) -> None:
    assert has_place(4, images, B, same_key) is expected


@given(
    st.lists(st.tuples(st.sampled_from((A, B, C)), st.integers(0, 8)), max_size=200),
    st.integers(1, 8),
)
def test_a_replica_never_has_more_than_six_batches_and_a_lone_caller_three(
    arrivals: list[tuple[Caller, int]], batch: int
) -> None:
    images, alone = dict[Caller, int](), dict[Caller, int]()
    for caller, same_key in arrivals:
        if has_place(batch, images, caller, same_key):
            images[caller] = images.get(caller, 0) + 1
        if has_place(batch, alone, A, same_key):
            alone[A] = alone.get(A, 0) + 1
    assert sum(images.values()) <= 6 * batch
    assert sum(alone.values()) <= 3 * batch


def test_a_replica_refuses_images_a_batch_beyond_the_places_that_any_sender_gives() -> None:
    assert (max_places(4), max_ongoing_images(4)) == (24, 28)


def test_images_without_steps_fill_no_batch() -> None:
    assert KeyLoad(0, 0, 0.1).add(5).add(0).stepping == 1
