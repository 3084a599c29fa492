"""A PostgreSQL ledger whose server is killed and comes back, while pictures are made."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, by_kind, count, judge, tally
from tests.support.postgres import PostgresServer, postgres_programs
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

AWAY_S = 15.0  # seconds
LONG = 60  # steps
AT_ONCE_S = 5.0  # seconds


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer(postgres_programs())
    yield server
    server.remove()


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> Iterator[ChaosService]:
    """Start a service with two ingresses over that server."""
    folder = tmp_path_factory.mktemp("postgres")
    options = {"seconds_scale": 0.3, "ingress": 2, "ledger_url": postgres.url}
    with own_service(ray_of_its_own, folder, **options) as service:
        yield service


def test_pictures_go_on_and_nothing_is_made_twice_when_the_database_is_killed_and_comes_back(
    service: ChaosService, postgres: PostgresServer
) -> None:
    before = [Call(image_body(n), key=f"before-{n}") for n in range(4)]
    running = [Call(image_body(100 + n, steps=LONG), key=f"running-{n}") for n in range(8)]
    away = [Call(image_body(200 + n), key=f"away-{n}") for n in range(4)]
    made = service.made()
    with Load(service.address) as load:
        kept = [future.result() for future in load.send(before)]
        begun = load.send(running)
        until(lambda: len(service.in_flight()) == len(running))
        postgres.kill()
        killed = time.monotonic()
        plain = load.send(Call(image_body(300 + n), at=n / 4) for n in range(int(4 * AWAY_S)))
        time.sleep(2)
        refused = [future.result() for future in load.send([*before, *away])]
        health = service.health()
        time.sleep(max(0.0, killed + AWAY_S - time.monotonic()))
        postgres.start()
        until(lambda: service.health()["status"] == "ready", 30)
        back = time.monotonic() - killed - AWAY_S
        plain_answers = [future.result() for future in plain]
        running_answers = [future.result() for future in begun]
        again = [future.result() for future in load.send([*before, *running])]
        later = [future.result() for future in load.send(away)]
    once = len(before) + len(running) + len(plain) + len(away)
    twice = service.made() - made - once
    slowest = max(answer.seconds for answer in refused)
    report(
        f"kill -9 of PostgreSQL for {AWAY_S:.0f} s, {len(running)} keyed images under way",
        f"without a key: {tally(plain_answers)}; under way: {tally(running_answers)}; keyed, "
        f"meanwhile: {tally(refused)}, slowest {slowest:.1f} s; /health {health['status']}, ready "
        f"{back:.1f} s after it is back; asked again: {tally(again)}; {twice} images made twice; "
        f"who was refused: {tally(later)}",
        "pictures go on, keyed calls are told at once, nothing is made twice",
    )
    assert len(by_kind(kept, Kind.MADE)) == len(before)
    assert {judge(answer).kind for answer in plain_answers} == {Kind.MADE}
    assert {judge(answer).kind for answer in running_answers} == {Kind.MADE}
    assert set(count(refused)) == {"503 LEDGER_UNAVAILABLE"}
    assert slowest <= AT_ONCE_S
    assert health["status"] == "degraded"
    assert {judge(answer).kind for answer in [*again, *later]} == {Kind.MADE}
    assert twice == 0
    assert [answer.body for answer in again[: len(before)]] == [answer.body for answer in kept]
