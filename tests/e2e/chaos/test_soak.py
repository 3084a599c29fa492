"""Half an hour of mixed load, after which no process may have grown."""

import itertools
import random
import time
from collections.abc import Iterator

import httpx
import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.measure import sampled
from tests.e2e.chaos.memory_fit import Slope, fit
from tests.e2e.chaos.processes import resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(4000)]

SECONDS = 1800.0
LEAKING_SECONDS = 600.0
LIMIT = 10.0  # MiB per hour
RATE = 4.0  # requests a second
LEAK = " fault:leak@0x0.05"  # MiB that a replica keeps of each image


@pytest.fixture
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a fast service."""
    with own_service(ray_of_its_own, tmp_path_factory.mktemp("soak"), seconds_scale=0.1) as service:
        yield service


def soak(service: ChaosService, seconds: float, prompt: str) -> tuple[dict[str, Slope], str]:
    """Load a service for a time; return the slope of each process from mid-run, and a summary."""
    deployments = ("Ingress", "Ledger", *DEPLOYMENTS.values())
    watched = {
        f"{name} {number}": process
        for name in deployments
        for number, process in enumerate(service.processes.replicas(name))
    }
    watched |= {"proxy": service.processes.proxy()}
    calls = itertools.count()
    kinds: dict[str, int] = {}
    chance, end = random.Random(0), time.monotonic() + seconds
    with sampled(lambda: {name: resident(p) for name, p in watched.items()}, 1.0) as memory:
        while time.monotonic() < end:
            with Load(service.address) as load:
                load.send(mixed(next(calls), prompt, chance) for _ in range(int(30 * RATE)))
                for answer in load.answers():
                    verdict = str(judge(answer))
                    kinds[verdict] = kinds.get(verdict, 0) + 1
                    assert judge(answer).kind in (Kind.MADE, Kind.ERROR, Kind.LEFT), verdict
            httpx.get(f"{service.address}/jobs/none", timeout=10)
    half = len(memory) // 2
    slopes = {
        name: fit([(at, sizes[name]) for at, sizes in memory[half:] if sizes]) for name in watched
    }
    return slopes, str(kinds)


def mixed(number: int, prompt: str, chance: random.Random) -> Call:
    """Return one of the requests that a service gets."""
    body = image_body(number, steps=chance.choice((4, 10, 20)), prompt=f"a fox{prompt}")
    return Call(
        body if chance.random() < 0.95 else {**body, "steps": 0},
        at=chance.random() * 30,
        key=f"soak-{number}" if chance.random() < 0.3 else None,
        leaves_after=0.2 if chance.random() < 0.05 else None,
    )


def check(slopes: dict[str, Slope]) -> None:
    """Fail if a process has surely grown faster than the limit."""
    grown = {name: str(s) for name, s in slopes.items() if s.mib_per_hour - s.error > LIMIT}
    assert not grown, f"memory grows: {grown}"


def test_no_process_grows_in_half_an_hour(service: ChaosService) -> None:
    slopes, summary = soak(service, SECONDS, "")
    worst = max(slopes, key=lambda name: slopes[name].mib_per_hour)
    blind = max(slope.error for slope in slopes.values())
    report(
        f"{SECONDS / 60:.0f} min of mixed load, {RATE:g} requests a second",
        f"{summary}; fastest growth {worst} {slopes[worst]}; smallest leak that is seen "
        f"{LIMIT + blind:.1f} MiB/h",
        f"slope <= {LIMIT:.0f} MiB/h from mid-run",
    )
    check(slopes)


def test_a_leak_is_seen(service: ChaosService) -> None:
    slopes, _ = soak(service, LEAKING_SECONDS, LEAK)
    leaking = {
        name: str(slope) for name, slope in slopes.items() if DEPLOYMENTS[Stage.BASE] in name
    }
    report("the same with a leak in the base replicas", f"{leaking}", "the same check fails")
    with pytest.raises(AssertionError, match="memory grows"):
        check(slopes)
