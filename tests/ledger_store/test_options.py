"""What callers have set for their own requests, tried on each implementation of a store."""

import pytest

from serve_app.ledger_store.store import MAX_OPTIONS, OPTION_TTL, KeptOption, LedgerStore
from tests.support.ledger_stores import Opening

NOW = 1000.0


def value_of(store: LedgerStore, caller: str, name: str = "model") -> str | None:
    kept = store.option(caller, name)
    return None if kept is None else kept.value


def test_a_caller_s_option_is_its_own_and_the_newest_counts(store: LedgerStore) -> None:
    assert store.option("key:a", "model") is None
    store.set_option("key:a", "model", "demo", NOW)
    store.set_option("key:b", "model", "other", NOW)
    store.set_option("key:a", "style", "ink", NOW)
    store.set_option("key:a", "model", "newest", NOW + 1)
    assert store.option("key:a", "model") == KeptOption("newest", NOW + 1)
    assert store.option("key:b", "model") == KeptOption("other", NOW)
    assert store.option("key:a", "style") == KeptOption("ink", NOW)
    assert store.option("key:c", "model") is None


def test_an_option_is_forgotten_some_weeks_after_it_was_set(store: LedgerStore) -> None:
    store.set_option("key:a", "model", "demo", NOW)
    store.set_option("key:a", "model", "demo", NOW + 5)
    store.delete_old(NOW + OPTION_TTL + 5)
    assert value_of(store, "key:a") == "demo"
    store.delete_old(NOW + OPTION_TTL + 6)
    assert value_of(store, "key:a") is None


def test_an_option_that_is_renewed_lives_as_if_it_were_set_again(store: LedgerStore) -> None:
    store.set_option("key:a", "model", "demo", NOW)
    store.set_option("key:b", "model", "demo", NOW)
    store.renew_option("key:a", "model", NOW + 9)
    store.delete_old(NOW + OPTION_TTL + 9)
    assert store.option("key:a", "model") == KeptOption("demo", NOW + 9)
    assert store.option("key:b", "model") is None


def test_no_option_is_made_by_being_renewed(store: LedgerStore) -> None:
    store.renew_option("key:a", "model", NOW)
    assert store.option("key:a", "model") is None


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_an_option_outlives_the_process(opening: Opening) -> None:
    store = opening(1000)
    store.set_option("key:a", "model", "demo", NOW)
    store.close()
    again = opening(1000)
    assert value_of(again, "key:a") == "demo"
    again.close()


@pytest.mark.long
def test_there_are_no_more_than_so_many_and_the_least_recently_used_go_first(
    store: LedgerStore,
) -> None:
    for number in range(MAX_OPTIONS):
        store.set_option(f"key:{number}", "model", "demo", NOW + number)
    store.renew_option("key:0", "model", NOW + MAX_OPTIONS)
    for number in range(MAX_OPTIONS, MAX_OPTIONS + 2):
        store.set_option(f"key:{number}", "model", "demo", NOW + number + 1)
    assert [value_of(store, f"key:{number}") for number in range(4)] == ["demo", None, None, "demo"]
