"""Virtual times of callers, without anything that is really served."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.scheduling.fair_shares import FairShares

ALICE, BOB, CAROL = Caller("alice", 3.0), Caller("bob", 1.0), Caller("carol", 1.0)


def shares_of(*callers: Caller) -> FairShares:
    """Return shares in which each of these has one piece of work, which never ends."""
    shares = FairShares()
    for caller in callers:
        shares.enter(caller)
    return shares


def serve_next(shares: FairShares, *callers: Caller, seconds: float = 1.0) -> Caller:
    caller = min(callers, key=shares.time)
    shares.serve([(caller, seconds)])
    return caller


def test_callers_are_served_by_their_weights() -> None:
    shares = shares_of(ALICE, BOB)
    served = Counter(serve_next(shares, ALICE, BOB).name for _ in range(400))
    assert served == {"alice": 300, "bob": 100}


def test_longer_services_are_fewer() -> None:
    shares, seconds = shares_of(BOB, CAROL), Counter[str]()
    for _ in range(300):
        caller = min((BOB, CAROL), key=shares.time)
        length = 5 if caller is BOB else 1
        shares.serve([(caller, length)])
        seconds[caller.name] += length
    assert abs(seconds["bob"] - seconds["carol"]) <= 5


def test_a_caller_that_comes_back_has_saved_nothing_up() -> None:
    shares = shares_of(BOB)
    for _ in range(100):
        serve_next(shares, BOB)
    shares.enter(CAROL)
    assert shares.time(CAROL) == 99  # where the last service of the other began
    served = Counter(serve_next(shares, BOB, CAROL).name for _ in range(20))
    assert served["carol"] <= 11


def test_leaving_and_coming_back_at_once_is_no_way_to_more() -> None:
    shares = shares_of(BOB, CAROL)
    shares.serve([(BOB, 50.0)])
    shares.leave(BOB)
    shares.enter(BOB)
    assert shares.time(BOB) == 50.0
    assert Counter(serve_next(shares, BOB, CAROL).name for _ in range(40)) == {"carol": 40}


def test_the_first_after_an_idle_time_owe_nothing() -> None:
    shares = shares_of(BOB)
    shares.serve([(BOB, 50.0)])
    shares.leave(BOB)
    assert len(shares) == 0
    shares.enter(CAROL)
    shares.enter(BOB)
    assert shares.time(BOB) == shares.time(CAROL)


def test_those_who_are_served_together_are_charged_each() -> None:
    shares = shares_of(ALICE, BOB)
    shares.serve([(ALICE, 3.0), (BOB, 1.0), (BOB, 1.0)])
    assert (shares.time(ALICE), shares.time(BOB)) == (1.0, 2.0)


def test_a_correction_gives_back_what_was_predicted_too_much_and_no_credit() -> None:
    shares = shares_of(BOB, CAROL)
    shares.serve([(BOB, 10.0)])
    shares.serve([(CAROL, 4.0)])
    shares.correct(BOB, -7.0)
    assert shares.time(BOB) == 3.0
    shares.enter(ALICE)
    present = shares.time(ALICE)
    assert present == 5.0  # half of the seconds that were served when Carol's turn began
    shares.serve([(ALICE, 6.0)])
    shares.correct(ALICE, -99.0)
    assert shares.time(ALICE) == present  # nobody is served before the present at which they came
    shares.correct(Caller("nobody"), 9.0)
    shares.raise_to(Caller("nobody"), 9.0)
    assert shares.time(Caller("nobody")) == present


def test_a_prediction_is_taken_back_from_a_caller_that_is_behind_the_present() -> None:
    """Bob is served where Carol has no place; so the present is ahead of her."""
    for first, second in ((1.0, -1.0), (-1.0, 1.0)):
        shares = shares_of(BOB, CAROL)
        shares.serve([(CAROL, 1.0)])
        shares.serve([(BOB, 9.0)])
        shares.serve([(BOB, 9.0)])
        shares.correct(CAROL, first)
        shares.correct(CAROL, second)
        assert shares.time(CAROL) == 1.0


def test_what_was_not_predicted_is_not_taken_back() -> None:
    shares = shares_of(BOB, CAROL)
    for _ in range(20):
        caller = serve_next(shares, BOB, CAROL)
        shares.correct(caller, 1.0)  # measured
        shares.correct(caller, -1.0)
    shares.correct(BOB, -7.0)
    assert shares.time(BOB) == shares.time(CAROL) == 10.0


def test_what_is_taken_back_after_an_absence_is_no_credit_for_it() -> None:
    shares = shares_of(BOB, CAROL)
    shares.serve([(BOB, 10.0)])
    shares.leave(BOB)
    for _ in range(3):
        shares.serve([(CAROL, 2.0)])
    shares.enter(BOB)
    shares.correct(BOB, -10.0)
    shares.enter(ALICE)
    assert shares.time(BOB) == shares.time(ALICE) > 0


def test_whoever_has_left_is_charged_only_while_it_makes_a_difference() -> None:
    shares = shares_of(BOB, CAROL)
    shares.serve([(BOB, 3.0)])
    shares.leave(BOB)
    shares.correct(BOB, 4.0)
    assert shares.time(BOB) == 7.0
    for _ in range(8):
        shares.serve([(CAROL, 1.0)])
    shares.enter(ALICE)
    assert len(shares) == 2
    shares.serve([(BOB, 5.0)])
    assert len(shares) == 2


def test_whoever_waits_is_served_before_ever_new_callers_who_come_once() -> None:
    """Four are there at any time, so each has about every fourth service."""
    shares, waiting, served = shares_of(CAROL), [CAROL], Counter[str]()
    for number in range(2000):
        while len(waiting) < 4:
            waiting.append(Caller(f"new {number} {len(waiting)}"))
            shares.enter(waiting[-1])
        caller = serve_next(shares, *waiting)
        served[caller.name] += 1
        if caller is not CAROL:
            waiting.remove(caller)
            shares.leave(caller)
        assert len(shares) < 20
    assert 400 < served["carol"] < 600


def test_predictions_that_are_too_long_hold_no_newcomer_up() -> None:
    shares = shares_of(BOB, CAROL)
    for _ in range(500):
        caller = serve_next(shares, BOB, CAROL, seconds=10.0)
        shares.correct(caller, -9.0)
    shares.enter(ALICE)
    assert shares.time(ALICE) <= max(shares.time(BOB), shares.time(CAROL)) + 10.0
    assert shares.time(BOB) == 250.0


def test_who_was_behind_long_ago_holds_no_newcomer_up() -> None:
    shares = shares_of(BOB, CAROL)
    for _ in range(10):  # where Bob had no place
        shares.serve([(CAROL, 1.0)])
    shares.leave(CAROL)
    for _ in range(20):
        shares.serve([(BOB, 1.0)])
    shares.enter(ALICE)
    assert shares.time(ALICE) <= shares.time(BOB) == 20.0


def test_a_virtual_time_is_raised_and_never_lowered() -> None:
    shares = shares_of(BOB)
    shares.raise_to(BOB, 2.0)
    shares.raise_to(BOB, 1.0)
    assert shares.time(BOB) == 2.0


CALLERS = (ALICE, BOB, CAROL)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "serve", "correct"]), st.integers(0, 2)),
    max_size=60,
)


@settings(max_examples=60)
@given(EVENTS)
def test_whatever_happens_nothing_is_kept_that_makes_no_difference(
    events: list[tuple[str, int]],
) -> None:
    shares, work, present = FairShares(), Counter[Caller](), 0.0
    for event, number in events:
        caller = CALLERS[number]
        if event == "enter":
            shares.enter(caller)
            assert work[caller] or shares.time(caller) >= present
            work[caller] += 1
        elif event == "leave" and work[caller]:
            shares.leave(caller)
            work[caller] -= 1
        elif event == "serve" and work[caller]:
            present = max(present, shares.time(caller))
            shares.serve([(caller, 2.0)])
        elif event == "correct":
            shares.correct(caller, -1.0)
    for caller in CALLERS:
        for _ in range(work[caller]):
            shares.leave(caller)
    assert len(shares) == 0


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=80))
def test_two_busy_callers_are_never_further_apart_than_their_longest_services(
    lengths: list[float],
) -> None:
    """Theorem 1 of the paper, for callers that always have work."""
    shares, had = shares_of(ALICE, BOB), {"alice": 0.0, "bob": 0.0}
    for seconds in lengths:
        had[serve_next(shares, ALICE, BOB, seconds=seconds).name] += seconds
    longest = max(lengths)
    apart = abs(had["alice"] / ALICE.weight - had["bob"] / BOB.weight)
    assert apart <= longest / ALICE.weight + longest / BOB.weight + 1e-9
