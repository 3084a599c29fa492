from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.scheduling.batching import choose_batch

ranked = st.lists(
    st.tuples(st.uuids().map(str), st.sampled_from([1, 2])), max_size=20, unique_by=lambda c: c[0]
)


def test_an_image_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    waiting = [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
    assert choose_batch(waiting, rows=4) == ("a", "b", "d")


@given(ranked, st.integers(1, 8))
def test_a_batch_keeps_its_bounds_and_leaves_no_row_free_that_somebody_could_use(
    waiting: list[tuple[str, int]], rows: int
) -> None:
    chosen = choose_batch(waiting, rows=rows)
    assert chosen == tuple(id for id, _ in waiting if id in chosen)
    free = rows - sum(needed for id, needed in waiting if id in chosen)
    assert free >= 0
    assert all(needed > free for id, needed in waiting if id not in chosen)


@given(st.lists(st.uuids().map(str), max_size=20, unique=True), st.integers(1, 4))
def test_those_who_need_a_row_less_give_it_to_others(ids: list[str], images: int) -> None:
    assert choose_batch([(id, 2) for id in ids], rows=2 * images) == tuple(ids[:images])
    assert choose_batch([(id, 1) for id in ids], rows=2 * images) == tuple(ids[: 2 * images])
