from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.scheduling.batching import choose_batch

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
