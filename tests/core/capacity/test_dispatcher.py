"""Which image waits, which is next, and where it goes."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.capacity.dispatcher import Dispatcher
from tests.support.dispatching import CountedReplicas, add, dispatch_all


def test_an_image_goes_to_the_best_replica() -> None:
    replicas = CountedReplicas(a=1, b=2)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "image")
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    assert (assignment.image.key, assignment.replicas) == ("image", ("b", "a"))
    assert dispatch_all(dispatcher) == replicas.sent == [("image", "b")]
    assert dispatcher.waiting == ()


def test_nothing_is_assigned_when_no_image_waits_or_no_place_is_free() -> None:
    dispatcher = Dispatcher(CountedReplicas(a=1))
    assert dispatcher.next_assignment() is None
    dispatcher = Dispatcher(CountedReplicas(a=0))
    add(dispatcher, "image")
    assert dispatcher.next_assignment() is None
    assert [image.key for image in dispatcher.waiting] == ["image"]


def test_the_image_that_would_be_done_first_alone_gets_the_next_place() -> None:
    replicas = CountedReplicas(a=3)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "long", steps=150, arrived=0.0)
    add(dispatcher, "late draft", steps=4, arrived=20.0)
    add(dispatcher, "draft", steps=4, arrived=1.0)
    assert [key for key, _ in dispatch_all(dispatcher)] == ["draft", "long", "late draft"]


def test_equally_urgent_images_keep_their_order() -> None:
    dispatcher = Dispatcher(CountedReplicas(a=20))
    keys = [str(number) for number in range(20)]
    for key in keys:
        add(dispatcher, key)
    assert [key for key, _ in dispatch_all(dispatcher)] == keys


def test_an_image_that_was_removed_gets_no_place() -> None:
    dispatcher = Dispatcher(CountedReplicas(a=9))
    add(dispatcher, "removed", steps=4)
    add(dispatcher, "other")
    dispatcher.remove("removed")
    dispatcher.remove("unknown")
    assert dispatch_all(dispatcher) == [("other", "a")]
    assert dispatcher.next_assignment() is None


def test_an_image_that_comes_back_is_sent_once() -> None:
    dispatcher = Dispatcher(CountedReplicas(a=9))
    add(dispatcher, "image", arrived=0.0)
    dispatcher.remove("image")
    add(dispatcher, "other", arrived=1.0)
    add(dispatcher, "image", arrived=2.0)
    assert [key for key, _ in dispatch_all(dispatcher)] == ["other", "image"]


def test_an_image_goes_to_the_replica_that_agreed_to_take_it() -> None:
    replicas = CountedReplicas(a=1, b=2)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "image")
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    dispatched = dispatcher.dispatch(assignment, "a")
    assert dispatched is not None
    assert dispatched.replica == "a"
    assert replicas.sent == [("image", "a")]


def test_a_place_that_another_image_took_meanwhile_is_not_used_twice() -> None:
    replicas = CountedReplicas(a=1, b=1)
    dispatcher = Dispatcher(replicas)
    add(dispatcher, "first")
    add(dispatcher, "second", arrived=1.0)
    add(dispatcher, "third", arrived=2.0)
    assignments = [dispatcher.next_assignment() for _ in range(3)]
    results = [dispatcher.dispatch(made, "a") for made in assignments if made is not None]
    assert replicas.sent == [("first", "a"), ("second", "b")]
    assert results[2] is None
    assert [image.key for image in dispatcher.waiting] == ["third"]


def test_a_place_whose_image_gave_up_goes_to_the_next_or_to_none() -> None:
    dispatcher = Dispatcher(CountedReplicas(a=2))
    add(dispatcher, "first")
    add(dispatcher, "second", arrived=1.0)
    assignment = dispatcher.next_assignment()
    assert assignment is not None
    dispatcher.remove("first")
    dispatched = dispatcher.dispatch(assignment)
    assert dispatched is not None
    assert dispatched.image.key == "second"
    assert dispatcher.dispatch(assignment) is None


ARRIVALS = st.lists(st.tuples(st.integers(1, 150), st.floats(0, 100)), max_size=30)


@given(ARRIVALS, st.integers(0, 10), st.integers(0, 10))
def test_places_are_never_exceeded_and_the_most_urgent_images_get_them(
    arrivals: list[tuple[int, float]], first: int, second: int
) -> None:
    replicas = CountedReplicas(a=first, b=second)
    dispatcher = Dispatcher(replicas)
    for number, (steps, arrived) in enumerate(arrivals):
        add(dispatcher, str(number), steps, arrived)
    due = {image.key: image.due for image in dispatcher.waiting}
    sent = [key for key, _ in dispatch_all(dispatcher)]
    assert len(sent) == min(len(arrivals), first + second)
    assert min(replicas.free.values()) >= 0
    waiting = [image.due for image in dispatcher.waiting]
    assert sorted(due[key] for key in sent) + sorted(waiting) == sorted(due.values())
