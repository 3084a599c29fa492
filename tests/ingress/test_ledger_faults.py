"""What callers and /health are shown while the ledger's disk is full, damaged or gone."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    IsLost,
    Job,
    JobError,
    JobState,
)
from serve_app.core.service.jobs import JobResult as Result
from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.deployments.ledger import Ledger
from serve_app.ledger_store.sqlite_errors import disk_full
from serve_app.ledger_store.sqlite_store import CHECK_INTERVAL_S, SqliteStore
from serve_app.ledger_store.store import LedgerStore
from tests.support.api import Client
from tests.support.clock import Clock
from tests.support.fake_conductor import FakeConductor
from tests.support.job_requests import KEY, post
from tests.support.ledger_stores import damage_all, damage_page, fill


class FullStore(SqliteStore):
    """A store in memory that has no room for anything new, until there is."""

    def __init__(self) -> None:
        super().__init__(LedgerFile(None))
        self.is_full = True

    def create(
        self, job: Job, claim: IdempotencyClaim | None, now: float, is_lost: IsLost
    ) -> ClaimResult:
        self._refuse()
        return super().create(job, claim, now, is_lost)

    def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: Result | None,
        now: float,
    ) -> bool:
        self._refuse()
        return super().finish(id, owner, state, error, result, now)

    def recover(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        if self.is_full:
            raise disk_full()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def api(conductor: FakeConductor) -> AsyncIterator[Callable[[Ledger], Client]]:
    clients: list[Client] = []

    def make(ledger: Ledger) -> Client:
        clients.append(Client(conductor, ledger))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.mark.parametrize("damage", [damage_all, damage_page])
async def test_with_a_damaged_file_callers_learn_it_and_images_without_a_key_are_made(
    api: Callable[[Ledger], Client], clock: Clock, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / "ledger.sqlite"
    ledger = await _ledger_with_jobs(file, clock)
    http = api(ledger)()
    assert (await http.get("/health")).json()["status"] == "ready"
    damage(file)
    clock.now += CHECK_INTERVAL_S + 1
    await ledger.check_health()
    health = await http.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert health.json()["reason"] == "the ledger's file is damaged"
    for response in (await post(http, **KEY), await http.get("/jobs/kept-1")):
        assert (response.status_code, _code(response)) == (503, "LEDGER_UNAVAILABLE")
        assert "The operator must restore it" in response.json()["error"]["message"]
        assert str(tmp_path) not in response.text
    assert (await post(http)).status_code == 201


async def test_a_file_that_was_begun_anew_is_a_warning_in_health(
    api: Callable[[Ledger], Client], clock: Clock, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.sqlite"
    (await _ledger_with_jobs(file, clock)).close()
    damage_page(file)
    http = api(Ledger(LedgerFile(file, replaces_damaged=True), clock))()
    health = (await http.get("/health")).json()
    assert health["status"] == "ready"
    assert health["warnings"][0].startswith("the ledger's file was damaged and begun anew at ")
    assert (await post(http, **KEY)).status_code == 201


async def test_with_a_full_disk_callers_learn_it_until_there_is_room(
    api: Callable[[Ledger], Client], clock: Clock
) -> None:
    store = FullStore()

    def opening(_: LedgerPlace) -> LedgerStore:
        return store

    ledger = Ledger(None, clock, opening)
    http = api(ledger)()
    refused = await post(http, **KEY)
    assert (refused.status_code, _code(refused)) == (503, "LEDGER_UNAVAILABLE")
    assert "the ledger's disk is full" in refused.json()["error"]["message"]
    made = await post(http)
    assert made.status_code == 201
    job = await http.get(f"/jobs/{made.json()['meta']['jobId']}")
    assert (job.status_code, _code(job)) == (503, "LEDGER_UNAVAILABLE")  # it could not be kept
    health = (await http.get("/health")).json()
    assert (health["status"], health["reason"]) == ("degraded", "the ledger's disk is full")
    store.is_full = False
    clock.now += 2
    await ledger.check_health()
    assert (await http.get("/health")).json()["status"] == "ready"
    assert (await post(http, **KEY)).status_code == 201


async def _ledger_with_jobs(file: Path, clock: Clock) -> Ledger:
    store = SqliteStore(LedgerFile(file))
    fill(store)
    store.close()
    return Ledger(LedgerFile(file), clock)


def _code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])
