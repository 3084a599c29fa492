"""How callers share the places that a dispatcher gives."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.dispatcher import MAX_KEYS, Dispatcher
from serve_app.core.diffusion.sample import Sample, StageSegment
from tests.support.dispatching import CountedReplicas, add, dispatch_all

A, B = Caller("a"), Caller("b")


def callers(sent: list[tuple[str, str]]) -> str:
    """Return the first letters of the images' ids, in the order in which they were sent."""
    return "".join(id[0] for id, _ in sent)


def test_places_go_to_callers_in_turn_however_early_a_flood_came() -> None:
    dispatcher = Dispatcher(CountedReplicas(r=12))
    for number in range(20):
        add(dispatcher, f"a{number}", arrived=0.0, caller=A)
    for number in range(3):
        add(dispatcher, f"b{number}", arrived=9.0, caller=B)
    assert callers(dispatch_all(dispatcher)) == "abababaaaaaa"


def test_a_place_counts_by_the_seconds_of_its_image() -> None:
    dispatcher = Dispatcher(CountedReplicas(r=12))
    for number in range(20):
        add(dispatcher, f"a{number}", steps=100, caller=A)
        add(dispatcher, f"b{number}", steps=10, caller=B)
    sent = Counter(callers(dispatch_all(dispatcher)))
    assert sent == {"a": 1, "b": 11}


def test_places_are_given_by_weight() -> None:
    replicas = CountedReplicas(r=12)
    dispatcher = Dispatcher(replicas)
    for number in range(20):
        add(dispatcher, f"a{number}", caller=Caller("a", 3.0))
        add(dispatcher, f"b{number}", caller=B)
    assert Counter(callers(dispatch_all(dispatcher))) == {"a": 9, "b": 3}


def test_what_was_measured_replaces_what_was_predicted() -> None:
    replicas = CountedReplicas(r=2)
    dispatcher = Dispatcher(replicas)
    for number in range(20):
        add(dispatcher, f"a{number}", caller=A)
        add(dispatcher, f"b{number}", caller=B)
    assert callers(dispatch_all(dispatcher)) == "ab"
    for caller, measured in ((A, 5 * 0.75), (B, 0.75)):  # predicted were 0.75 s for each
        dispatcher.charge(caller, measured)
        dispatcher.charge(caller, -0.75)
    replicas.free["r"] = 5
    assert callers(dispatch_all(dispatcher)) == "bbbba"


def test_a_second_image_is_sent_though_ever_new_callers_come_with_one_each() -> None:
    replicas = CountedReplicas(r=0)
    dispatcher, sent = Dispatcher(replicas), list[str]()
    for number in range(2):
        add(dispatcher, f"a{number}", caller=A)
    while "a1" not in sent and len(sent) < 50:
        add(dispatcher, f"n{len(sent)}", arrived=9.0, caller=Caller(f"new {len(sent)}"))
        replicas.free["r"] = 1
        sent += [key for key, _ in dispatch_all(dispatcher)]
    assert sent.index("a1") < 6  # three callers wait at any time: within two rounds


class NewcomersPlaces(CountedReplicas):
    """Replicas that are full for one caller and have a place for every other one."""

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        ranked = super().rank(sample, segment)
        return ranked if sample.caller != A else []


def test_a_caller_without_a_place_holds_nobody_up() -> None:
    dispatcher = Dispatcher(NewcomersPlaces(r=5))
    add(dispatcher, "a0", arrived=0.0, caller=A)
    add(dispatcher, "b0", arrived=9.0, caller=B)
    assert dispatch_all(dispatcher) == [("b0", "r")]
    assert [image.key for image in dispatcher.waiting] == ["a0"]


def test_full_replicas_are_ranked_for_nobody() -> None:
    replicas = CountedReplicas(r=0)
    dispatcher = Dispatcher(replicas)
    for number in range(9):
        add(dispatcher, str(number), caller=Caller(str(number)))
    assert dispatcher.next_assignment() is None
    assert replicas.ranked == []


def test_replicas_are_not_ranked_again_for_the_image_of_an_assignment() -> None:
    replicas = CountedReplicas(r=2)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "b0", caller=B)
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    assert dispatcher.dispatch(assignment) is not None
    assert replicas.ranked == ["b0"]


def test_consent_ranks_replicas_once_more_only_for_callers_who_had_no_place() -> None:
    replicas = NewcomersPlaces(r=2)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "a0", caller=A)
    add(dispatcher, "b0", caller=B)
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    dispatched = dispatcher.dispatch(assignment, "r")
    assert dispatched is not None
    assert dispatched.image.key == "b0"
    assert replicas.ranked == ["a0", "b0", "a0"]


def test_a_place_for_one_caller_is_not_given_to_another_who_came_meanwhile() -> None:
    dispatcher = Dispatcher(NewcomersPlaces(r=1))
    add(dispatcher, "b0", arrived=9.0, caller=B)
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    add(dispatcher, "a0", arrived=0.0, caller=A)
    dispatched = dispatcher.dispatch(assignment, "r")
    assert dispatched is not None
    assert dispatched.image.key == "b0"


def test_an_image_that_waits_again_under_its_key_waits_once() -> None:
    dispatcher = Dispatcher(CountedReplicas(r=5))
    add(dispatcher, "a0", steps=10, caller=A)
    add(dispatcher, "a0", steps=20, caller=A)
    assert [image.sample.spec.steps for image in dispatcher.waiting] == [20]
    assert dispatch_all(dispatcher) == [("a0", "r")]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["add", "remove", "send", "end"]))))
def test_whoever_leaves_however_two_floods_have_equal_places_afterwards(
    events: list[tuple[int, str]],
) -> None:
    replicas = CountedReplicas(r=0)
    dispatcher, keys, sent = Dispatcher(replicas), list[tuple[str, Caller]](), list[Caller]()
    everybody = (A, B, Caller("c"))
    for number, (who, event) in enumerate(events):
        if event == "add":
            keys.append((str(number), everybody[who]))
            add(dispatcher, str(number), caller=everybody[who])
        elif event == "remove" and keys:
            dispatcher.remove(keys.pop(who % len(keys))[0])
        elif event == "send":
            replicas.free["r"] = 1
            sent += [next(c for k, c in keys if k == key) for key, _ in dispatch_all(dispatcher)]
            keys = [key for key in keys if key[0] in {image.key for image in dispatcher.waiting}]
        elif event == "end" and sent:
            dispatcher.charge(sent.pop(), -0.75)
    for key, _ in keys:
        dispatcher.remove(key)
    assert dispatcher.waiting == ()
    assert dispatcher.next_assignment() is None
    replicas.free["r"] = 12
    for number in range(20):
        add(dispatcher, f"a{number}", caller=A)
        add(dispatcher, f"b{number}", caller=B)
    assert Counter(callers(dispatch_all(dispatcher))) == {"a": 6, "b": 6}


def test_who_gave_up_and_comes_back_has_saved_up_no_places() -> None:
    replicas = CountedReplicas(r=0)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "a", caller=A)
    for number in range(60):
        add(dispatcher, f"b{number}", caller=B)
    dispatcher.remove("a")
    replicas.free["r"] = 50
    dispatch_all(dispatcher)
    for number in range(20):
        add(dispatcher, f"a{number}", arrived=9.0, caller=A)
    replicas.free["r"] = 8
    assert Counter(callers(dispatch_all(dispatcher))) == {"a": 4, "b": 4}


class WidePlaces(CountedReplicas):
    """Replicas with places for wide images, and none for others."""

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        ranked = super().rank(sample, segment)
        return ranked if sample.spec.width > 1024 else []


def test_a_less_urgent_image_has_a_place_that_no_image_of_another_size_has() -> None:
    replicas = WidePlaces(r=2)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "a0", caller=A)
    add(dispatcher, "a1", steps=50, caller=A, width=1344)
    add(dispatcher, "a2", steps=40, caller=A, width=1344)
    add(dispatcher, "a3", steps=60, caller=A, width=1344)
    assert [key for key, _ in dispatch_all(dispatcher)] == ["a2", "a1"]
    assert [image.key for image in dispatcher.waiting] == ["a0", "a3"]


def test_but_the_next_caller_s_only_after_it() -> None:
    dispatcher = Dispatcher(WidePlaces(r=2))
    add(dispatcher, "b0", caller=B, width=1344)
    for number in range(2):
        add(dispatcher, f"a{number}", caller=A, width=1024)
        add(dispatcher, f"a{number + 2}", steps=90, caller=A, width=1344)
    assert [key for key, _ in dispatch_all(dispatcher)] == ["b0", "a2"]


def test_places_are_sought_for_a_limited_number_of_sizes() -> None:
    replicas = WidePlaces(r=1)
    dispatcher = Dispatcher(replicas)
    for number in range(MAX_KEYS):
        add(dispatcher, str(number), caller=A, width=1024 - 8 * number)
    add(dispatcher, "wide", steps=50, caller=A, width=1344)
    assert dispatcher.next_assignment() is None
    assert replicas.ranked == [str(number) for number in range(MAX_KEYS)]
    dispatcher.remove("0")
    assert dispatch_all(dispatcher) == [("wide", "r")]
