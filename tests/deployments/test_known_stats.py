"""`KnownStats`: who counts while not everybody responds."""

from serve_app.deployments.known_stats import SILENCE_S, KnownStats
from tests.support.builders import replica_stats

A, B, C = (replica_stats(pid=pid) for pid in (1, 2, 3))


def test_a_silent_replica_counts_from_its_first_unanswered_call_however_long_ago_it_responded() -> (
    None
):
    known = KnownStats()
    known.update([A, B], silent=0, now=0)
    assert known.update([A], silent=1, now=1000) == [A, B]
    assert known.update([A], silent=1, now=1000 + SILENCE_S - 0.1) == [A, B]
    assert known.update([A], silent=1, now=1000 + SILENCE_S) == [A]


def test_one_replica_that_is_silent_for_good_does_not_shorten_the_time_of_another() -> None:
    known = KnownStats()
    known.update([A, B, C], silent=0, now=0)
    known.update([A, B], silent=1, now=10)
    assert known.update([A, B], silent=1, now=16) == [A, B]
    assert known.update([A], silent=2, now=17) == [A, B]


def test_a_replica_that_responds_again_begins_anew() -> None:
    known = KnownStats()
    known.update([A, B], silent=0, now=0)
    known.update([A], silent=1, now=10)
    newer = replica_stats(pid=2, owed_seconds=3.0)
    known.update([A, newer], silent=0, now=14)
    assert known.update([A], silent=1, now=20) == [A, newer]


def test_what_failed_or_was_never_heard_does_not_count() -> None:
    known = KnownStats()
    assert known.update([A], silent=1, now=0) == [A]
    known.update([A, B], silent=0, now=1)
    assert known.update([A], silent=0, now=2) == [A]
    assert known.update([A], silent=1, now=3) == [A]
