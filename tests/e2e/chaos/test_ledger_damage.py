"""A ledger whose disk is full, or whose file is damaged, while pictures are made."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.testing.faulty_service import ORIGIN
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, count, judge, tally
from tests.support.ledger_stores import damage_all, damage_page

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

PAGE = 4096
AT_ONCE_S = 5.0  # seconds


@pytest.fixture
def service(ray_of_its_own: OwnRay, tmp_path: Path) -> Iterator[ChaosService]:
    """Start a fast service with a ledger that has some jobs."""
    with own_service(ray_of_its_own, tmp_path, seconds_scale=0.1) as service:
        with Load(service.address) as load:
            load.send(Call(image_body(n), key=f"before-{n}") for n in range(8))
            assert {judge(answer).kind for answer in load.answers()} == {Kind.MADE}
        yield service


def fill_disk(service: ChaosService) -> None:
    """Let no file of the ledger's process grow any more."""
    ledger = psutil.Process(service.processes.ledger().pid)
    ledger.rlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))


def corrupt(service: ChaosService) -> None:
    """Overwrite the whole file; what the ledger has in memory goes with its process."""
    damage_all(service.args.ledger)
    kill(service.processes.ledger())


def damage_a_page(service: ChaosService) -> None:
    """Overwrite the first page of the jobs."""
    damage_page(service.args.ledger)
    kill(service.processes.ledger())


@pytest.mark.parametrize(
    "harm", [fill_disk, corrupt, damage_a_page], ids=["disk-full", "corrupt", "damaged-page"]
)
def test_pictures_go_on_and_keyed_calls_hear_of_a_broken_ledger_at_once(
    service: ChaosService, harm: Callable[[ChaosService], None]
) -> None:
    harm(service)
    time.sleep(3)
    with Load(service.address) as load:
        plain = load.send(Call(image_body(100 + n)) for n in range(8))
        keyed = load.send(Call(image_body(200 + n), key=f"after-{n}") for n in range(4))
        load.answers()
    started = time.monotonic()
    job = httpx.get(f"{service.address}/jobs/{32 * '0'}", headers={"Origin": ORIGIN}, timeout=60)
    looked_up = time.monotonic() - started
    health = service.health()
    slowest = max(future.result().seconds for future in keyed)
    report(
        f"the ledger: {harm.__name__.replace('_', ' ')}",
        f"pictures without a key {tally(f.result() for f in plain)}; keyed "
        f"{tally(f.result() for f in keyed)}, slowest {slowest:.1f} s; GET /jobs "
        f"{job.status_code} after {looked_up:.1f} s; /health {health['status']}: "
        f"{health['reason']}",
        "told at once by name, /health says degraded, pictures go on",
    )
    assert {judge(future.result()).kind for future in plain} == {Kind.MADE}
    assert set(count(future.result() for future in keyed)) == {"503 LEDGER_UNAVAILABLE"}
    assert slowest <= AT_ONCE_S
    assert (job.status_code, looked_up <= AT_ONCE_S) == (503, True)
    assert health["status"] == "degraded"
    assert "ledger" in health["reason"]
