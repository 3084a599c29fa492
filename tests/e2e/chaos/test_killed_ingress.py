"""An ingress that is killed while it has images under way, some of them under a key."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.processes import kill
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

LEASE = 10.0  # seconds after which nothing steps any more for an ingress that is gone
LONG = 150  # steps


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service whose steps take as long as SDXL's."""
    with own_service(
        ray_of_its_own, tmp_path_factory.mktemp("ingress"), seconds_scale=1.0
    ) as service:
        yield service


def running_jobs(service: ChaosService) -> int:
    """Return the jobs that the ledger's file counts as running."""
    file = f"file:{service.args.ledger}?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as ledger:
        return int(ledger.execute("SELECT count(*) FROM jobs WHERE state='running'").fetchone()[0])


def test_images_of_a_killed_ingress_are_dropped_and_continued_for_whoever_asks_again(
    service: ChaosService,
) -> None:
    seconds = LONG * 0.15  # about what they take
    calls = [
        Call(image_body(n, steps=LONG), key=f"ingress-{n}" if n < 4 else None) for n in range(8)
    ]
    with Load(service.address) as load:
        load.send(calls)
        until(lambda: len(service.in_flight()) == 8 and min(service.in_flight().values()) > 10)
        done = sorted(service.in_flight().values())
        kill(service.processes.ingress())
        killed = time.monotonic()
        at_kill = service.steps()
        lost = load.answers()
        until(lambda: not service.in_flight(), 4 * seconds + 60)
        idle = time.monotonic() - killed
    for_nobody = service.steps() - at_kill
    service.wait_whole()
    taken = service.steps()
    with Load(service.address) as load:
        load.send(calls[:4])
        again = load.answers()
    saved = 4 * LONG - (service.steps() - taken)
    time.sleep(max(0.0, killed + 2 * LEASE - time.monotonic()))
    with suppress(TimeoutError):  # a response goes before what its process tells the ledger
        until(lambda: not running_jobs(service), 2)
    rows = running_jobs(service)
    report(
        f"kill -9 of the ingress, 8 images of {LONG} steps under way, 4 of them keyed",
        f"{tally(lost)}; {for_nobody} steps for nobody, the last {idle:.1f} s after; asked "
        f"again under their keys: {tally(again)}, {saved} of {4 * LONG} steps saved; "
        f"{rows} ledger rows still running",
        f"dropped within {LEASE:.0f} s, continued for whoever asks again",
    )
    assert {judge(answer).kind for answer in again} == {Kind.MADE}
    assert idle <= LEASE
    assert saved >= sum(done[:4])  # all that was done when the ingress died, whichever have a key
    assert rows == 0
