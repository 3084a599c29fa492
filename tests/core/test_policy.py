from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.policy import Candidate, choose_batch, rank_replicas

SQUARE, WIDE = (16, 16), (12, 20)

candidates = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        shape=st.sampled_from([SQUARE, WIDE]),
        rows=st.sampled_from([1, 2]),
        due=st.integers(0, 50),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda c: c.id,
)


def test_the_most_urgent_leads_and_only_its_shape_comes_along() -> None:
    waiting = [
        Candidate("late", SQUARE, 2, due=30),
        Candidate("wide", WIDE, 2, due=9),
        Candidate("wider", WIDE, 2, due=40),
    ]
    assert choose_batch(waiting, images=4, rows=8) == ("wide", "wider")


def test_an_image_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    waiting = [
        Candidate("a", SQUARE, 2, 1),
        Candidate("b", SQUARE, 1, 2),
        Candidate("c", SQUARE, 2, 3),
        Candidate("d", SQUARE, 1, 4),
    ]
    assert choose_batch(waiting, images=4, rows=4) == ("a", "b", "d")


@given(candidates, st.integers(1, 8))
def test_a_batch_keeps_its_bounds_and_has_the_most_urgent(
    waiting: list[Candidate], images: int
) -> None:
    chosen = choose_batch(waiting, images=images, rows=2 * images)
    batch = [c for c in waiting if c.id in chosen]
    assert 1 <= len(batch) <= images
    assert sum(c.rows for c in batch) <= 2 * images
    assert len({c.shape for c in batch}) == 1
    assert min(c.due for c in waiting) == min(c.due for c in batch)


def test_no_candidates_make_no_batch() -> None:
    assert choose_batch([], images=4, rows=8) == ()


def test_the_least_loaded_replica_is_best_and_a_tie_goes_to_the_longest_unchosen() -> None:
    assert rank_replicas(["a", "b", "c"], {"a": 2, "b": 1, "c": 1}, {"b": 7, "c": 3}) == [
        "c",
        "b",
        "a",
    ]
    assert rank_replicas(["a", "b"], {}, {"a": 1}) == ["b", "a"]
