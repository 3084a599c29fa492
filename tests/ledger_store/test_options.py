"""What callers have set for their own requests, tried on each implementation of a store."""

import pytest

from serve_app.ledger_store.store import MAX_OPTIONS, OPTION_TTL, LedgerStore
from tests.support.ledger_stores import Opening

NOW = 1000.0


def test_a_caller_s_option_is_its_own_and_the_newest_counts(store: LedgerStore) -> None:
    assert store.option("key:a", "model") is None
    store.set_option("key:a", "model", "demo", NOW)
    store.set_option("key:b", "model", "other", NOW)
    store.set_option("key:a", "style", "ink", NOW)
    store.set_option("key:a", "model", "newest", NOW + 1)
    assert store.option("key:a", "model") == "newest"
    assert store.option("key:b", "model") == "other"
    assert store.option("key:a", "style") == "ink"
    assert store.option("key:c", "model") is None


def test_an_option_is_forgotten_some_weeks_after_it_was_set(store: LedgerStore) -> None:
    store.set_option("key:a", "model", "demo", NOW)
    store.set_option("key:a", "model", "demo", NOW + 5)
    store.delete_old(NOW + OPTION_TTL + 5)
    assert store.option("key:a", "model") == "demo"
    store.delete_old(NOW + OPTION_TTL + 6)
    assert store.option("key:a", "model") is None


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_an_option_outlives_the_process(opening: Opening) -> None:
    store = opening(1000)
    store.set_option("key:a", "model", "demo", NOW)
    store.close()
    again = opening(1000)
    assert again.option("key:a", "model") == "demo"
    again.close()


@pytest.mark.long
def test_there_are_no_more_than_so_many_and_the_oldest_go_first(store: LedgerStore) -> None:
    for number in range(MAX_OPTIONS + 2):
        store.set_option(f"key:{number}", "model", "demo", NOW + number)
    assert store.option("key:1", "model") is None
    assert store.option("key:2", "model") == "demo"
