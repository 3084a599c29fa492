from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.policy import Home, choose_batch, rank_homes, rank_replicas

ranked = st.lists(
    st.tuples(st.uuids().map(str), st.sampled_from([1, 2])), max_size=20, unique_by=lambda c: c[0]
)


def test_an_image_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    waiting = [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
    assert choose_batch(waiting, images=4, rows=4) == ("a", "b", "d")


@given(ranked, st.integers(1, 8))
def test_a_batch_keeps_its_bounds_and_has_the_most_urgent(
    waiting: list[tuple[str, int]], images: int
) -> None:
    chosen = choose_batch(waiting, images=images, rows=2 * images)
    assert chosen == tuple(id for id, _ in waiting[:images])
    tight = choose_batch(waiting, images=images, rows=images)
    assert sum(rows for id, rows in waiting if id in tight) <= images
    assert len(tight) <= images


def test_the_least_loaded_replica_is_best_and_a_tie_goes_to_the_longest_unchosen() -> None:
    assert rank_replicas(["a", "b", "c"], {"a": 2, "b": 1, "c": 1}, {"b": 7, "c": 3}) == [
        "c",
        "b",
        "a",
    ]
    assert rank_replicas(["a", "b"], {}, {"a": 1}) == ["b", "a"]


def test_an_image_goes_where_it_is_done_soonest() -> None:
    homes = [
        Home("busy", 9.0, joins=False, chosen=1),
        Home("idle", 0.0, joins=False, chosen=3),
        Home("other", 0.0, joins=False, chosen=2),
    ]
    assert rank_homes(homes, 4.0) == ["other", "idle", "busy"]


def test_a_free_place_beside_its_like_is_worth_the_image_s_own_work() -> None:
    homes = [Home("idle", 0.0, joins=False, chosen=0), Home("beside", 3.0, joins=True, chosen=9)]
    assert rank_homes(homes, 4.0) == ["beside", "idle"]
    assert rank_homes(homes, 2.0) == ["idle", "beside"]
