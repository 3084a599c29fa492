"""Webhooks that wait in the ledger, tried on each implementation of a store."""

import json
from dataclasses import replace

import pytest

from serve_app.core.service import webhooks
from serve_app.core.service.jobs import JobState, RunningJob
from serve_app.core.service.webhooks import (
    ABANDONED_WAIT_S,
    CLAIMED_WAIT_S,
    LEASE_S,
    MAX_TRIES,
    WEBHOOK_TTL,
    Webhook,
)
from serve_app.ledger_store.store import LedgerStore
from tests.support.ledger_stores import CLAIM, JOB, Opening, all_lost, none_lost, succeed

URL = "https://example.org/hook"
NAMED = replace(JOB, webhook=URL)
NOW = JOB.created + 5  # when `succeed` says that it ends


def taken(store: LedgerStore, now: float = NOW, url: str = URL, limit: int = 10) -> list[Webhook]:
    return list(store.take_webhooks(url, limit, now).webhooks)


def test_the_end_of_a_job_that_names_a_receiver_waits_for_it(store: LedgerStore) -> None:
    store.create(NAMED, None, JOB.created, none_lost)
    assert taken(store) == []
    assert succeed(store)
    (webhook,) = taken(store)
    assert (webhook.job, webhook.url, webhook.tries) == (JOB.id, URL, 1)
    assert json.loads(webhook.body)["type"] == "job.succeeded"


def test_a_job_that_names_none_leaves_none(store: LedgerStore) -> None:
    store.create(JOB, None, JOB.created, none_lost)
    assert succeed(store)
    assert store.take_webhooks(URL, 10, NOW).wait is None


def test_each_receiver_has_its_own_and_no_more_are_taken_than_the_limit(
    store: LedgerStore,
) -> None:
    for number in range(3):
        store.create(replace(NAMED, id=f"job-{number}"), None, JOB.created, none_lost)
        assert succeed(store, f"job-{number}")
    assert taken(store, url="https://example.org/other") == []
    assert len(taken(store, limit=2)) == 2
    assert len(taken(store, limit=2)) == 1


def test_whoever_takes_it_has_a_lease_and_then_another_may_try(store: LedgerStore) -> None:
    store.create(NAMED, None, JOB.created, none_lost)
    succeed(store)
    (first,) = taken(store)
    due = store.take_webhooks(URL, 10, NOW + 1)
    assert (due.webhooks, due.wait) == ((), LEASE_S - 1)
    (second,) = taken(store, NOW + LEASE_S)
    assert second == replace(first, tries=2)


def test_one_that_failed_comes_again_when_it_is_due_and_one_that_is_settled_never(
    opening: Opening, kind: str
) -> None:
    store = opening(1000)
    store.create(NAMED, None, JOB.created, none_lost)
    succeed(store)
    (first,) = taken(store)
    store.settle_webhook(first.id, NOW + 500)
    if kind != "memory":  # it outlives the process
        store.close()
        store = opening(1000)
    assert taken(store, NOW + 499) == []
    (second,) = taken(store, NOW + 500)
    assert (second.id, second.tries) == (first.id, 2)
    store.settle_webhook(first.id, None)
    assert store.take_webhooks(URL, 10, NOW + 5000).wait is None
    store.close()


def test_a_lost_job_is_reported_after_a_while_unless_somebody_takes_it_over(
    store: LedgerStore,
) -> None:
    store.create(NAMED, CLAIM, JOB.created, none_lost)
    store.create(replace(NAMED, id="other"), None, JOB.created, none_lost)
    store.abandon([RunningJob(id, JOB.owner, JOB.created) for id in (JOB.id, "other")], NOW)
    assert taken(store, NOW + ABANDONED_WAIT_S - 1) == []
    (lost,) = taken(store, NOW + ABANDONED_WAIT_S)
    assert lost.job == "other"
    again = replace(NAMED, id="again", owner="owner-2")
    assert store.create(again, CLAIM, NOW, all_lost).is_owner
    assert json.loads(lost.body)["data"]["errorCode"] == "REPLICA_LOST"
    assert store.finish(JOB.id, "owner-2", JobState.SUCCEEDED, None, None, NOW)
    (made,) = taken(store)
    assert (made.job, json.loads(made.body)["type"]) == (JOB.id, "job.succeeded")


def test_a_lost_job_that_has_a_claim_is_reported_much_later(store: LedgerStore) -> None:
    """It may be in the spool, for a service that has yet to start."""
    store.create(NAMED, CLAIM, JOB.created, none_lost)
    store.abandon([RunningJob(JOB.id, JOB.owner, JOB.created)], NOW)
    assert taken(store, NOW + CLAIMED_WAIT_S - 1) == []
    assert [webhook.job for webhook in taken(store, NOW + CLAIMED_WAIT_S)] == [JOB.id]


def test_one_whose_last_try_was_never_settled_is_dropped(
    store: LedgerStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.create(NAMED, None, JOB.created, none_lost)
    succeed(store)
    for number in range(MAX_TRIES):
        (webhook,) = taken(store, NOW + number * LEASE_S)
        assert webhook.tries == number + 1
    due = store.take_webhooks(URL, 10, NOW + MAX_TRIES * LEASE_S)
    assert (due.webhooks, due.wait, due.waiting) == ((), None, 0)
    assert "1 webhooks are dropped: their last try was not answered for" in caplog.text


def test_an_owner_that_was_thought_lost_tells_the_true_end_alone(store: LedgerStore) -> None:
    store.create(NAMED, None, JOB.created, none_lost)
    store.abandon([RunningJob(JOB.id, JOB.owner, JOB.created)], NOW)
    succeed(store)
    (webhook,) = taken(store, NOW + ABANDONED_WAIT_S)
    assert json.loads(webhook.body)["type"] == "job.succeeded"


@pytest.mark.long
def test_there_are_no_more_than_so_many_and_the_oldest_go_first(store: LedgerStore) -> None:
    """Of one receiver, so that one which is away costs no other its messages."""
    other = "https://example.org/other"
    store.create(replace(NAMED, id="of another", webhook=other), None, JOB.created, none_lost)
    assert succeed(store, "of another")
    for number in range(webhooks.MAX_WEBHOOKS + 2):
        id = f"job-{number}"
        store.create(replace(NAMED, id=id), None, JOB.created, none_lost)
        store.finish(id, JOB.owner, JobState.CANCELLED, None, None, NOW + number)
    late = NOW + webhooks.MAX_WEBHOOKS
    assert taken(store, late + 2, limit=1)[0].job == "job-2"
    assert len(taken(store, late + 2, url=other)) == 1


def test_what_is_neither_delivered_nor_given_up_is_deleted_at_last(store: LedgerStore) -> None:
    store.create(NAMED, None, JOB.created, none_lost)
    succeed(store)
    store.delete_old(NOW + WEBHOOK_TTL)
    assert store.take_webhooks(URL, 0, NOW).wait == 0
    store.delete_old(NOW + WEBHOOK_TTL + 1)
    assert store.take_webhooks(URL, 0, NOW).wait is None
