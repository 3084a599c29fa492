"""The health of the service with its ledger's."""

from pathlib import Path

import pytest

from serve_app.core.service.info import Health, HealthStatus, LedgerHealth
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile
from serve_app.core.service.warm_ups import WarmUp

READY = Health(HealthStatus.READY, "", {"base": 1}, 0.0)
SICK = Health(HealthStatus.DEGRADED, "a replica is sick", {"base": 1}, 0.0)
LOADING = Health(HealthStatus.LOADING, "no replica is ready", {}, 0.0)


@pytest.mark.parametrize(
    ("health", "problem", "status", "reason"),
    [
        (READY, "", HealthStatus.READY, ""),
        (READY, "the disk is full", HealthStatus.DEGRADED, "the disk is full"),
        (SICK, "", HealthStatus.DEGRADED, "a replica is sick"),
        (SICK, "it is full", HealthStatus.DEGRADED, "a replica is sick; it is full"),
        (LOADING, "the disk is full", HealthStatus.LOADING, "no replica is ready"),
    ],
)
def test_a_ledger_that_does_not_work_degrades_a_service_that_makes_images(
    health: Health, problem: str, status: HealthStatus, reason: str
) -> None:
    whole = health.with_ledger(LedgerHealth(problem))
    assert (whole.status, whole.reason, whole.notices) == (status, reason, ())


def test_what_the_operator_should_know_changes_no_status() -> None:
    whole = READY.with_ledger(LedgerHealth(notice="begun anew"))
    assert (whole.status, whole.notices) == (HealthStatus.READY, ("begun anew",))


def test_a_service_that_loads_says_how_far_its_models_are_compiled() -> None:
    ledger = LedgerHealth(warm_ups=(WarmUp("sdxl", 2, 8), WarmUp("refiner", 0, 8)))
    loading = LOADING.with_ledger(ledger).reason
    assert loading == (
        "no replica is ready; 2 of 8 kinds of step of sdxl are compiled; "
        "0 of 8 kinds of step of refiner are compiled"
    )
    assert not READY.with_ledger(ledger).reason  # another replica of a service that works


def test_the_address_of_a_database_is_not_shown() -> None:
    assert "secret" not in repr(LedgerDatabase("postgresql://u:secret@h/d"))
    assert repr(LedgerFile(Path("/a"))) != repr(LedgerFile(Path("/b")))
