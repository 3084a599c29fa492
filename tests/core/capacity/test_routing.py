"""Which replica an image goes to, by what replicas have to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.replica_load import ReplicaLoad
from serve_app.core.capacity.routing import (
    has_place,
    max_ongoing_images,
    max_places,
    rank_replicas,
)
from tests.support.replica_loads import SQUARE, WIDE, added, replica


def rank(
    replicas: dict[str, ReplicaLoad],
    key: str,
    steps: int,
    last_chosen: dict[str, int] | None = None,
) -> list[str]:
    candidates = [(id, load.seconds, added(load, key, steps)) for id, load in replicas.items()]
    return rank_replicas(candidates, last_chosen or {})


def test_an_image_goes_where_it_is_done_soonest_while_a_replica_is_idle() -> None:
    idle, beside = replica(), replica(square=(50, 30))
    assert rank({"idle": idle, "beside": beside}, SQUARE, 30) == ["idle", "beside"]  # both in 3 s
    slower = [("idle", 0.0, 3.15), ("beside", 3.0, 0.0)]
    assert rank_replicas(slower, {}) == ["idle", "beside"]
    slower = [("idle", 0.0, 6.0), ("beside", 3.0, 0.0)]
    assert rank_replicas(slower, {}) == ["beside", "idle"]
    assert rank({"idle": idle, "beside": beside}, WIDE, 30) == ["idle", "beside"]
    full = replica(square=(120, 30))
    assert rank({"idle": idle, "full": full}, SQUARE, 30) == ["idle", "full"]


def test_where_no_replica_is_idle_a_free_place_is_worth_a_longer_wait() -> None:
    both = {"short": replica(wide=(20, 20)), "like": replica(square=(60, 60))}
    assert rank(both, SQUARE, 30) == ["like", "short"]
    assert rank(both | {"none": replica()}, SQUARE, 30)[0] == "none"


def test_among_equals_the_replica_chosen_least_recently_is_first() -> None:
    replicas = {"a": replica(), "b": replica(), "c": replica()}
    assert rank(replicas, SQUARE, 4, {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


A, B, C = Caller("a"), Caller("b"), Caller("c", 3.0)


@pytest.mark.parametrize(
    ("images", "caller", "expected"),
    [
        ({A: 11}, A, True),
        ({A: 12}, A, False),
        ({A: 12}, B, True),
        ({A: 12, B: 3}, B, True),  # its share of two batches of four is four
        ({A: 12, B: 4}, B, False),
        ({A: 12, B: 1}, A, False),
        ({A: 12, C: 5}, C, True),  # of weight 3: its share is six
        ({A: 12, C: 6}, C, False),
        ({A: 12, C: 1}, B, True),
        ({A: 12, C: 8, B: 3}, Caller("d"), True),
        ({A: 12, C: 8, B: 4}, Caller("d"), False),  # six batches
        ({C: 12}, Caller("c", 1.0), False),  # the same caller, though its weight has changed
    ],
)
def test_beyond_three_batches_a_caller_has_places_up_to_its_share_of_two_batches(
    images: dict[Caller, int], caller: Caller, expected: bool
) -> None:
    assert has_place(4, images, caller, same_key=4, keys=1) is expected


@pytest.mark.parametrize(
    ("images", "caller", "expected"),
    [
        ({A: 5, B: 2}, A, True),  # half of the twelve places each
        ({A: 6, B: 2}, A, False),
        ({A: 6, B: 1}, B, True),
        ({A: 6, B: 0}, A, True),  # nobody else has anything there
        ({A: 2, C: 6}, A, True),  # of weight 3: three quarters of the places
        ({A: 3, C: 6}, A, False),
        ({A: 3, C: 8}, C, True),
    ],
)
def test_callers_share_the_places_of_three_batches_by_weight(
    images: dict[Caller, int], caller: Caller, expected: bool
) -> None:
    assert has_place(4, images, caller, same_key=4, keys=1) is expected


HEAVY = Caller("heavy", 9.0)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({A: 6, B: 1}, True),  # of B's six places five are kept: its image's and a batch
        ({A: 7, B: 1}, False),
        ({A: 6, HEAVY: 1}, True),  # of eleven places likewise
        ({A: 7, HEAVY: 1}, False),
        ({A: 3, HEAVY: 4}, True),
        ({A: 4, HEAVY: 4}, False),
        ({A: 4, HEAVY: 1, C: 2}, False),  # and of C's three places all three
        ({A: 3, HEAVY: 1, C: 2}, True),
    ],
)
def test_of_another_caller_s_share_its_images_and_one_batch_more_are_kept(
    images: dict[Caller, int], expected: bool
) -> None:
    assert has_place(4, images, A, same_key=4, keys=1) is expected


@pytest.mark.parametrize(
    ("images", "same_key", "keys", "expected"),
    [
        ({A: 12, B: 3}, 3, 2, True),
        ({C: 6, B: 3}, 3, 2, True),  # though it has its share of three batches
        ({A: 12, B: 4}, 4, 2, False),  # its batch is full
        ({A: 12, B: 7}, 3, 2, True),  # the others only wait to be decoded, or have another key
        ({A: 12, B: 8}, 3, 2, False),  # five batches
        ({A: 12, B: 3, C: 4}, 3, 2, True),
        ({A: 12, B: 3, C: 5}, 3, 2, False),  # the sixth batch is for those with less than a share
        ({A: 12, B: 3, C: 5}, 3, 3, True),  # a batch more for each key
        ({A: 12, B: 3, C: 44}, 3, 12, True),
        ({A: 12, B: 3, C: 45}, 3, 12, False),  # but no more than twelve of them
        ({A: 12, B: 3, C: 45}, 3, 50, False),
        ({B: 12}, 3, 2, False),  # nobody else is there
        ({A: 12, B: 13}, 3, 4, True),
        ({A: 12, B: 14}, 3, 4, False),  # half of the 28 places
        ({A: 18, B: 1}, 4, 2, True),  # its share of a batch
        ({A: 18, B: 2}, 4, 2, False),
        ({A: 6, B: 17}, 3, 4, True),  # of the others' half, what they have and one batch are kept
        ({A: 6, B: 18}, 3, 4, False),
    ],
)
def test_a_caller_has_places_for_images_that_fill_up_a_batch_of_their_key(
    images: dict[Caller, int], same_key: int, keys: int, expected: bool
) -> None:
    assert has_place(4, images, B, same_key, keys) is expected


@given(
    st.lists(
        st.tuples(st.sampled_from((A, B, C)), st.integers(0, 8), st.integers(1, 99)), max_size=200
    ),
    st.integers(1, 8),
)
def test_a_replica_never_has_more_than_sixteen_batches_and_a_lone_caller_three(
    arrivals: list[tuple[Caller, int, int]], batch: int
) -> None:
    images, alone = dict[Caller, int](), dict[Caller, int]()
    for caller, same_key, keys in arrivals:
        if has_place(batch, images, caller, same_key, keys):
            images[caller] = images.get(caller, 0) + 1
        if has_place(batch, alone, A, same_key, keys):
            alone[A] = alone.get(A, 0) + 1
    assert sum(images.values()) <= 16 * batch
    assert sum(alone.values()) <= 3 * batch


@given(st.dictionaries(st.sampled_from((A, B, C)), st.integers(0, 30)), st.integers(1, 20))
def test_who_has_no_image_there_has_any_place_that_is_left(
    images: dict[Caller, int], keys: int
) -> None:
    expected = sum(images.values()) < max_places(4, keys)
    assert has_place(4, images, Caller("d", 0.1), same_key=4, keys=keys) is expected


def test_a_replica_refuses_images_a_batch_beyond_the_places_that_any_sender_gives() -> None:
    assert (max_places(4, 1), max_places(4, 2)) == (24, 24)
    assert (max_places(4), max_ongoing_images(4)) == (64, 68)
