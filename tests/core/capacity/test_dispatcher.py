"""Which image waits, which is next, and where it goes."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.dispatcher import Dispatcher
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage


class CountedReplicas:
    """Replicas with a number of free places; the one with the most free places is the best."""

    def __init__(self, **free: int) -> None:
        self.free = free
        self.sent: list[tuple[str, str]] = []
        self.ranked: list[str] = []  # the images that replicas were ranked for

    def isolated_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        return 0.1 * (segment.stop - sample.index)

    def are_full(self) -> bool:
        return not any(self.free.values())

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        self.ranked.append(sample.id)
        available = [id for id, places in self.free.items() if places > 0]
        return sorted(available, key=lambda id: (-self.free[id], id))

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> float:
        self.free[replica] -= 1
        self.sent.append((sample.id, replica))
        return self.isolated_seconds(sample, segment) / 4


def image(id: str, steps: int, caller: Caller = NO_CALLER) -> tuple[Sample[Any], StageSegment]:
    spec = ImageSpec(prompt="a", seed=1, width=1024, height=1024, steps=steps, guidance=6.9)
    schedule = make_schedule(NoiseConfig(), spec.sampler, steps, None, 1.0)
    sample: Sample[Any] = new_sample(id, spec, schedule, Stage.BASE, caller=caller)
    return sample, StageSegment(Stage.BASE, steps, last=True)


def add(
    dispatcher: Dispatcher,
    id: str,
    steps: int = 30,
    arrived: float = 0.0,
    caller: Caller = NO_CALLER,
) -> None:
    dispatcher.add(id, *image(id, steps, caller), arrived)


def dispatch_all(dispatcher: Dispatcher) -> list[tuple[str, str]]:
    sent = []
    while (assignment := dispatcher.next_assignment()) is not None:
        dispatched = dispatcher.dispatch(assignment)
        assert dispatched is not None
        sent.append((dispatched.image.key, dispatched.replica))
    return sent


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
