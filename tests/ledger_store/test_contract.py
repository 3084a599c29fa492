"""What every store of the ledger promises, tried on each implementation."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from serve_app.core.service.daily_quota import day_of
from serve_app.core.service.jobs import (
    OWNER_LOST,
    Job,
    JobError,
    JobFilter,
    JobState,
    RunningJob,
)
from serve_app.ledger_store.store import CLAIM_TTL, MAX_JOB_AGE, RESULT_TTL, LedgerStore
from tests.support.ledger_stores import (
    CLAIM,
    JOB,
    KINDS,
    RESULT,
    Opening,
    all_lost,
    none_lost,
    succeed,
)

NOW = JOB.created
RUNNING = RunningJob(JOB.id, JOB.owner, JOB.created)


def test_a_job_is_kept_with_its_result(store: LedgerStore) -> None:
    store.create(JOB, None, NOW, none_lost)
    assert store.read(JOB.id) == JOB
    assert succeed(store)
    assert store.read(JOB.id) == replace(JOB, state=JobState.SUCCEEDED, result=RESULT)
    assert store.read("another") is None


def test_whether_a_result_is_kept_is_known_without_reading_it(store: LedgerStore) -> None:
    assert not store.has_result(JOB.id)
    store.create(JOB, None, NOW, none_lost)
    assert not store.has_result(JOB.id)
    succeed(store)
    assert store.has_result(JOB.id)


@pytest.mark.parametrize("final", [False, True])
def test_a_job_is_kept_with_its_error(store: LedgerStore, *, final: bool) -> None:
    store.create(JOB, None, NOW, none_lost)
    error = JobError("OUT_OF_MEMORY", "no room", final)
    assert store.finish(JOB.id, JOB.owner, JobState.FAILED, error, None, NOW)
    assert store.read(JOB.id) == replace(JOB, state=JobState.FAILED, error=error)


def test_an_end_is_final_and_another_owner_s_is_none(store: LedgerStore) -> None:
    store.create(JOB, None, NOW, none_lost)
    assert not store.finish(JOB.id, "owner-2", JobState.CANCELLED, None, None, NOW)
    assert succeed(store)
    assert not store.finish(JOB.id, JOB.owner, JobState.CANCELLED, None, None, NOW)
    job = store.read(JOB.id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED


def test_the_second_claim_gets_the_job_of_the_first(store: LedgerStore) -> None:
    first = store.create(JOB, CLAIM, NOW, none_lost)
    assert (first.job, first.seed, first.is_owner) == (JOB.id, 7, True)
    assert store.create(JOB, CLAIM, NOW, none_lost) == first  # whose response was lost
    second = store.create(replace(JOB, id="job-2"), replace(CLAIM, seed=99), NOW, none_lost)
    assert (second.job, second.seed, second.is_owner) == (JOB.id, 7, False)
    succeed(store)
    third = store.create(replace(JOB, id="job-3"), replace(CLAIM, seed=99), NOW, all_lost)
    assert (third.job, third.is_owner) == (JOB.id, False)
    assert store.read("job-2") is None


def test_another_body_under_the_same_key_is_a_conflict(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    other = replace(CLAIM, fingerprint="another")
    assert store.create(replace(JOB, id="job-2"), other, NOW, none_lost).job is None


def test_a_claim_on_a_job_that_did_not_succeed_is_free_again(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    store.finish(JOB.id, JOB.owner, JobState.FAILED, None, None, NOW)
    other = replace(CLAIM, fingerprint="another")
    again = store.create(replace(JOB, id="job-2"), other, NOW, none_lost)
    assert (again.job, again.is_owner) == ("job-2", True)


def test_a_lost_job_is_taken_over_under_its_own_id_and_seed(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    judged: list[RunningJob] = []

    def is_lost(job: RunningJob) -> bool:
        judged.append(job)
        return True

    other = Job("job-2", JOB.caller, "owner-2", NOW + 20)
    taken = store.create(other, replace(CLAIM, seed=99), NOW + 20, is_lost)
    assert (taken.job, taken.seed, taken.is_owner) == (JOB.id, 7, True)
    assert judged == [RunningJob(JOB.id, JOB.owner, JOB.created)]
    assert store.read(JOB.id) == replace(other, id=JOB.id)
    assert store.create(other, CLAIM, NOW + 20, none_lost) == taken  # whose response was lost
    assert not succeed(store)  # the first owner was only slow


def test_abandoned_jobs_have_ended_and_keep_their_claims(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    store.create(replace(JOB, id="other"), None, NOW, none_lost)
    assert {job.id for job in store.running()} == {JOB.id, "other"}
    store.abandon([RUNNING], NOW)
    assert [job.id for job in store.running()] == ["other"]
    lost = replace(JOB, state=JobState.FAILED, error=OWNER_LOST, is_abandoned=True)
    assert store.read(JOB.id) == lost
    taken = store.create(replace(JOB, id="job-2"), replace(CLAIM, seed=99), NOW, none_lost)
    assert (taken.job, taken.seed, taken.is_owner) == (JOB.id, 7, True)


def test_the_owner_of_an_abandoned_job_may_still_finish_it(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    store.abandon([RUNNING], NOW)
    assert succeed(store)
    assert store.read(JOB.id) == replace(JOB, state=JobState.SUCCEEDED, result=RESULT)
    store.abandon([RUNNING], NOW)
    assert store.read(JOB.id) == replace(JOB, state=JobState.SUCCEEDED, result=RESULT)


def test_a_job_that_was_taken_over_meanwhile_is_not_abandoned(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    store.create(replace(JOB, id="job-2", owner="owner-2"), CLAIM, NOW, all_lost)
    store.abandon([RUNNING], NOW)
    job = store.read(JOB.id)
    assert job is not None
    assert (job.owner, job.state) == ("owner-2", JobState.RUNNING)


def test_the_jobs_of_a_caller_are_listed_newest_first(store: LedgerStore) -> None:
    jobs = [replace(JOB, id=f"job-{n}", created=NOW + n // 2) for n in range(5)]  # some as old
    for job in [*jobs, replace(JOB, id="other", caller="another")]:
        store.create(job, None, NOW, none_lost)
    error = JobError("OUT_OF_MEMORY", "no room", final=True)
    assert store.finish("job-0", JOB.owner, JobState.FAILED, error, None, NOW)
    assert store.finish("job-1", JOB.owner, JobState.SUCCEEDED, None, RESULT, NOW)
    jobs[0] = replace(jobs[0], state=JobState.FAILED, error=error)
    jobs[1] = replace(jobs[1], state=JobState.SUCCEEDED)  # without its result
    newest_first = sorted(jobs, key=lambda job: job.place, reverse=True)
    everything = JobFilter(JOB.caller)
    assert store.find(everything) == newest_first
    pages, before = [], None
    while page := store.find(replace(everything, before=before, limit=2)):
        pages.append(page)
        before = page[-1].place
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    for state, ids in (
        (JobState.RUNNING, ["job-4", "job-3", "job-2"]),
        (JobState.SUCCEEDED, ["job-1"]),
        (JobState.FAILED, ["job-0"]),
        (JobState.CANCELLED, []),
    ):
        found = store.find(replace(everything, state=state))
        assert [job.id for job in found] == ids


def test_an_abandoned_job_is_listed_as_failed(store: LedgerStore) -> None:
    store.create(JOB, None, NOW, none_lost)
    store.abandon([RUNNING], NOW)
    (job,) = store.find(JobFilter(JOB.caller, JobState.FAILED))
    assert job.error == OWNER_LOST


def test_a_secret_is_kept_once_it_was_made(opening: Opening, kind: str) -> None:
    store = opening(1000)
    assert store.secret("links", b"first") == b"first"
    assert store.secret("links", b"second") == b"first"
    assert store.secret("others", b"third") == b"third"
    store.close()
    if kind != "memory":
        reopened = opening(1000)
        assert reopened.secret("links", b"fourth") == b"first"
        reopened.close()


def test_terms_are_kept_by_caller(store: LedgerStore) -> None:
    assert store.accepted_terms("a") is None
    store.accept_terms("a", "old", NOW)
    store.accept_terms("a", "new", NOW)
    assert (store.accepted_terms("a"), store.accepted_terms("b")) == ("new", None)


def test_a_quota_is_used_up_by_caller_and_day_and_can_be_given_back(store: LedgerStore) -> None:
    assert store.use("a", "2026-11-28", 60, 100)
    assert not store.use("a", "2026-11-28", 41, 100)
    assert store.use("a", "2026-11-28", 40, 100)
    assert not store.use("a", "2026-11-28", 0.5, 100)
    for caller, day in (("b", "2026-11-28"), ("a", "2026-11-29")):
        assert store.use(caller, day, 100, 100)
    assert store.use("a", "2026-11-28", -30, 100)
    assert store.use("a", "2026-11-28", 30, 100)
    assert store.use("c", "2026-11-28", -50, 100)  # nothing was used
    assert not store.use("c", "2026-11-28", 101, 100)
    assert store.use("c", "2026-11-28", 100, 100)


def test_what_was_used_on_an_earlier_day_is_forgotten(store: LedgerStore) -> None:
    times = [datetime(2026, 11, day, 12, tzinfo=UTC).timestamp() for day in (28, 29)]
    store.use("a", day_of(times[0]), 100, 100)
    store.delete_old(times[0])
    assert not store.use("a", day_of(times[0]), 1, 100)
    store.delete_old(times[1])
    assert store.use("a", day_of(times[0]), 1, 100)


def test_results_seeds_and_jobs_are_kept_for_their_times(store: LedgerStore) -> None:
    store.create(JOB, CLAIM, NOW, none_lost)
    store.create(replace(JOB, id="running"), None, NOW, none_lost)
    succeed(store)
    ended = JOB.created + 5
    store.delete_old(ended + RESULT_TTL - 1)
    assert store.read(JOB.id) is not None
    store.delete_old(ended + RESULT_TTL + 1)
    assert store.read(JOB.id) is None
    assert store.read("running") is not None
    again = store.create(replace(JOB, id="job-2"), replace(CLAIM, seed=99), NOW, none_lost)
    assert (again.seed, again.is_owner) == (7, True)
    store.delete_old(NOW + MAX_JOB_AGE + 1)
    assert store.read("running") is None
    store.delete_old(NOW + CLAIM_TTL + 1)
    fresh = store.create(replace(JOB, id="job-3"), replace(CLAIM, seed=99), NOW, none_lost)
    assert (fresh.job, fresh.seed) == ("job-3", 99)


def test_results_are_bounded_in_bytes_and_the_oldest_go_first(opening: Opening) -> None:
    store = opening(30)
    for number in range(4):
        job = replace(JOB, id=f"job-{number}")
        store.create(job, None, NOW, none_lost)
        store.finish(job.id, job.owner, JobState.SUCCEEDED, None, RESULT, NOW + number)
    kept = [store.read(f"job-{number}") for number in range(4)]
    assert [bool(job and job.result) for job in kept] == [False, False, True, True]
    store.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
def test_what_was_kept_is_there_after_a_restart(opening: Opening) -> None:
    first = opening(1000)
    first.create(JOB, CLAIM, NOW, none_lost)
    first.accept_terms("a", "terms", NOW)
    first.create(replace(JOB, id="done"), None, NOW, none_lost)
    succeed(first, "done")
    first.close()
    second = opening(1000)
    assert second.accepted_terms("a") == "terms"
    assert second.read("done") == replace(JOB, id="done", state=JobState.SUCCEEDED, result=RESULT)
    assert not second.create(replace(JOB, id="job-2"), CLAIM, NOW, none_lost).is_owner
    second.close()


def test_a_store_without_a_fault_recovers_and_checks_without_an_error(store: LedgerStore) -> None:
    store.create(JOB, None, NOW, none_lost)
    store.check()
    store.recover()
    assert store.read(JOB.id) == JOB
    assert store.notice == ""
