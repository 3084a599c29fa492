"""What one replica has to do, and for whom it has places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.replica_load import KeyLoad, ReplicaLoad
from serve_app.core.capacity.routing import has_place
from tests.support.replica_loads import SQUARE, WIDE, added, replica


def test_a_replica_is_done_with_its_batches_and_not_before_its_longest_image() -> None:
    assert replica().seconds == 0
    assert replica(square=(30, 30)).seconds == pytest.approx(3.0)  # alone in its batch
    assert replica(square=(120, 30)).seconds == pytest.approx(3.0)  # a full batch
    assert replica(square=(240, 30)).seconds == pytest.approx(6.0)
    assert replica(square=(30, 30), wide=(20, 20)).seconds == pytest.approx(5.0)


def test_each_further_image_of_a_batch_lengthens_its_steps_by_as_much() -> None:
    empty = KeyLoad(0, 0, step_seconds=0.1, alone_seconds=0.04)
    loads = [empty]
    for _ in range(5):
        loads.append(loads[-1].add(30))
    seconds = [load.seconds(4) for load in loads]
    assert seconds == pytest.approx([0.0, 1.2, 1.8, 2.4, 3.0, 3.75])
    assert loads[1].added_seconds(10, 4) == pytest.approx(10 * 0.02)
    assert loads[1].seconds(1) == pytest.approx(3.0)
    # Measured apart, they differ by chance.
    assert KeyLoad(30, 30, 0.1, 0.11).seconds(4) == pytest.approx(3.0)


def test_a_free_place_in_a_batch_of_its_key_costs_nothing() -> None:
    assert added(replica(square=(30, 30)), SQUARE, 30) == pytest.approx(0.0)
    assert added(replica(square=(30, 30)), SQUARE, 50) == pytest.approx(2.0)
    assert added(replica(square=(120, 30)), SQUARE, 40) == pytest.approx(1.0)
    assert added(replica(square=(30, 30)), WIDE, 30, 0.2) == pytest.approx(6.0)


@given(st.integers(1, 500), st.integers(1, 150), st.integers(1, 150))
def test_one_more_image_never_makes_a_replica_finish_sooner(
    steps: int, longest: int, more: int
) -> None:
    load = replica(square=(max(steps, longest), longest))
    assert added(load, SQUARE, more) >= 0
    assert added(load, WIDE, more) == pytest.approx(more * 0.1)


@given(st.integers(0, 500), st.integers(0, 150), st.integers(0, 150), st.integers(1, 8))
def test_an_image_adds_what_the_replica_takes_longer_with_it(
    steps: int, longest: int, more: int, batch: int
) -> None:
    load = KeyLoad(steps, longest, 0.1, 0.04)
    expected = load.add(more).seconds(batch) - load.seconds(batch)
    assert load.added_seconds(more, batch) == expected


def test_images_without_steps_fill_no_batch() -> None:
    assert KeyLoad(0, 0, 0.1, 0.1).add(5, 0).stepping == 1


_CALLERS = (Caller("a"), Caller("b"), Caller("c", 3.0))


@given(
    st.dictionaries(st.sampled_from(_CALLERS), st.integers(0, 12)),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9)),
)
def test_a_load_has_the_places_that_the_rule_gives(
    callers: dict[Caller, int], stepping: dict[str, int]
) -> None:
    loads = {key: KeyLoad(30 * n, 30, 0.1, 0.1, n) for key, n in stepping.items()}
    load = ReplicaLoad(4, loads, callers)
    keys = sum(n > 0 for n in stepping.values())
    for caller in _CALLERS * 2:  # a second time, from what the first answers left
        for key in "xyz":
            same = stepping.get(key, 0)
            expected = has_place(4, callers, caller, same, keys + (not same))
            assert load.has_place(caller, key) is expected
    newcomer = Caller("d")
    assert load.is_full is not any(load.has_place(newcomer, key) for key in ("x", "new"))
